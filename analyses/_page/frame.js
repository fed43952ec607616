// In a notebook: tell the frame around this page how high it is.
new ResizeObserver(() => parent.postMessage(
  {hookedPageHeight: Math.ceil(document.documentElement.getBoundingClientRect().height)}, "*"))
  .observe(document.documentElement);
