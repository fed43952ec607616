// Tables as files: they stand in the page compressed, and the browser unpacks them.
for (const button of document.querySelectorAll("button[data-table]")) {
  const said = button.nextElementSibling;
  button.addEventListener("click", async () => {
    if (typeof DecompressionStream === "undefined") {
      said.textContent = "This browser cannot unpack the table: it lacks DecompressionStream, which "
        + "Chrome and Edge have from version 80, Safari from 16.4, Firefox from 113.";
      return;
    }
    const packed = atob(document.getElementById(button.dataset.table).textContent);
    const bytes = Uint8Array.from(packed, letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const table = new Blob([await new Response(stream).blob()], {type: "text/csv"});
    handOver(table, button.dataset.file);
    said.textContent = `${button.dataset.file} was handed to the browser.`;
  });
}
