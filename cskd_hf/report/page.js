"use strict";
// A click on a column's head sorts by it, first with the largest on top.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const sign = head.ariaSort === "descending" ? 1 : -1;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.ariaSort = sign < 0 ? "descending" : "ascending";
    const key = row => row.cells[head.cellIndex].textContent.replaceAll(",", "");
    const compare = (a, b) => sign * key(a).localeCompare(key(b), undefined, { numeric: true });
    body.append(...[...body.rows].sort(compare));
  });
}
const hint = () => document.querySelectorAll(".wide").forEach(
  box => box.classList.toggle("scrolls", box.scrollWidth > box.clientWidth));
addEventListener("resize", hint);
addEventListener("toggle", hint, true);
hint();
