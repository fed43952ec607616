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
  AttentionHeads: (view, clickOnly) => {
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
const chooseHead = (view, name) =>
  [...view.querySelectorAll("[data-head]")].find(head => head.dataset.head === name)?.click();
// Draws a component into `container`, in place of what is there.
const mountView = (container, component, props, clickOnly = false, head = "") => {
  const view = document.createElement("div");
  view.id = `circuitsvis-${++mountView.count}`;
  view.className = `view ${component}`;
  container.replaceChildren(view);
  const drawn = new MutationObserver(() => {
    drawn.disconnect();
    container.style.minHeight = "";
    finish[component]?.(view, clickOnly);
    if (head) chooseHead(view, head);
  });
  drawn.observe(view, {childList: true});
  CircuitsVis.render(view.id, CircuitsVis[component], props);
};
mountView.count = 0;
const drawView = container => {
  near.unobserve(container);
  if (container.hasChildNodes()) return;
  const spec = JSON.parse(document.getElementById(container.dataset.spec).textContent);
  mountView(container, spec.component, spec.props, spec.clickOnly);
};
const near = new IntersectionObserver(
  entries => entries.forEach(entry => entry.isIntersecting && drawView(entry.target)),
  {rootMargin: "600px"});
const views = document.querySelectorAll("[data-spec].mount");
views.forEach(container => near.observe(container));
addEventListener("beforeprint", () => views.forEach(drawView));
