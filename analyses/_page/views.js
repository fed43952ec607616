// Views of circuitsvis, drawn when they come near the window, and mended where it leaves things out.
const press = (element, label) => {
  // What it lets one choose with the mouse can be reached and chosen with the keyboard.
  Object.assign(element, {tabIndex: 0, role: "button", ariaLabel: label});
  element.addEventListener("keydown", event => {
    if (event.target !== element || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    element.click();
  });
};
const finish = {
  AttentionHeads: (view, {clickOnly}) => {
    for (const name of view.querySelectorAll("h4")) {
      const head = name.parentElement.parentElement;
      press(head, `head ${name.textContent}`);
      head.dataset.head = name.textContent;
    }
    if (clickOnly) for (const over of ["mouseover", "mouseout"])
      view.parentElement.addEventListener(over, event => {
        if (event.target.closest("[data-head]")) event.stopPropagation();
      }, true);
  },
  ColoredTokensMulti: view => {
    const kinds = view.firstElementChild.firstElementChild;
    for (const kind of kinds.children) press(kind, kind.textContent);
    // Its bounds stay those of the kind shown before until both of its Reset buttons are pressed.
    new MutationObserver(() => view.querySelectorAll("button").forEach(reset => reset.click()))
      .observe(kinds, {subtree: true, attributeFilter: ["style"]});
    for (const bound of view.querySelectorAll("input"))
      bound.ariaLabel = bound.previousElementSibling.textContent;
  },
};
const drawView = view => {
  near.unobserve(view);
  if (view.hasChildNodes()) return;
  const spec = JSON.parse(document.getElementById(view.dataset.spec).textContent);
  const drawn = new MutationObserver(() => {
    drawn.disconnect();
    view.style.minHeight = "";
    finish[spec.component]?.(view, spec);
  });
  drawn.observe(view, {childList: true});
  CircuitsVis.render(view.id, CircuitsVis[spec.component], spec.props);
};
const near = new IntersectionObserver(
  entries => entries.forEach(entry => entry.isIntersecting && drawView(entry.target)),
  {rootMargin: "600px"});
const views = document.querySelectorAll(".view");
views.forEach(view => near.observe(view));
addEventListener("beforeprint", () => views.forEach(drawView));
