const dark = matchMedia("(prefers-color-scheme: dark)");
const show = theme => {
  document.documentElement.dataset.theme = theme;
  dispatchEvent(new CustomEvent("theme", {detail: theme}));
};
const system = () => show(dark.matches ? "dark" : "light");
dark.addEventListener("change", system);
document.getElementById("theme")?.addEventListener("click", () =>
  show(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
// A view in a notebook has no button, and ink is dark on paper.
let shown;
addEventListener("beforeprint", () => {
  shown = document.documentElement.dataset.theme;
  show("light");
});
addEventListener("afterprint", () => show(shown));
system();
