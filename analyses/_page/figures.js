// plotly's default tool bar has a button that uploads the figure.
const CONFIG = {displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
const draw = (plot, template) => {
  const spec = JSON.parse(document.getElementById(plot.dataset.spec).textContent);
  Plotly.newPlot(plot, spec.data, {...spec.layout, template}, CONFIG);
  if (spec.opens) plot.on("plotly_click", ({points: [{pointNumber: [row, column]}]}) =>
    dispatchEvent(new CustomEvent("open-head", {detail: {from: plot, name: spec.opens[row][column]}})));
  const buttons = [...plot.closest("figure").querySelectorAll(".buttons button")];
  buttons.forEach((button, index) => button.addEventListener("click", () => {
    const [method, ...values] = spec.buttons[index];
    Plotly[method](plot, ...values);
    for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  }));
};
addEventListener("theme", ({detail}) => {
  for (const plot of document.querySelectorAll(".plot")) {
    if (plot.data) Plotly.relayout(plot, {template: THEMES[detail]});
    else draw(plot, THEMES[detail]);
  }
});
