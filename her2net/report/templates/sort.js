for (const button of document.querySelectorAll("th > button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const key = (row) => row.cells[head.cellIndex].dataset.sort ?? row.cells[head.cellIndex].textContent.trim();
    const rows = [...body.rows].sort((one, other) => {
      const a = key(one), b = key(other);
      const blank = (text) => text === "" || text.startsWith("undefined");
      if (blank(a) || blank(b)) return blank(a) - blank(b);
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    });
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...rows);
  });
}
for (const slider of document.querySelectorAll(".gallery input[type=range]")) {
  const slices = [...slider.parentElement.querySelectorAll(".slices > figure")];
  const show = () => {
    slices.forEach((slice, index) => { slice.hidden = index !== Number(slider.value); });
    slider.setAttribute("aria-valuetext", slices[slider.value].querySelector("figcaption").textContent);
  };
  slider.hidden = false;
  slider.addEventListener("input", show);
  show();
}
window.addEventListener("beforeprint", () => {
  for (const slice of document.querySelectorAll(".gallery figure[hidden]")) slice.hidden = false;
});
window.addEventListener("afterprint", () => {
  for (const slider of document.querySelectorAll(".gallery input[type=range]")) slider.dispatchEvent(new Event("input"));
});
const hint = () => {
  for (const box of document.querySelectorAll(".scroll")) box.classList.toggle("overflows", box.scrollWidth > box.clientWidth + 1);
};
addEventListener("resize", hint);
addEventListener("load", hint);
hint();
