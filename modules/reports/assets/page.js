"use strict";
document.documentElement.classList.add("scripted");

// Tables: a click on a title sorts by that column; another click turns the order around.
function read(row, column) {
  const cell = row.cells[column], number = cell.querySelector("data");
  const text = number ? number.value : cell.textContent.trim();
  return { text, number: text === "" ? NaN : Number(text) };
}

// What is not known comes last in either order.
function compare(one, other, sign) {
  const known = [one, other].map((item) => !Number.isNaN(item.number));
  if (known[0] && known[1]) return sign * (one.number - other.number);
  if (known[0] || known[1]) return known[0] ? -1 : 1;
  return sign * one.text.localeCompare(other.text);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const order = title.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", order);
      const body = table.tBodies[0], sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((one, other) => compare(read(one, column), read(other, column), sign));
      body.append(...rows);
    });
  });
}

// Viewers: each plane is a column of pictures, of which one is shown.
function showSlice(plane) {
  const slider = plane.querySelector(".slider"), last = Number(slider.max), place = Number(slider.value);
  for (const layer of plane.querySelectorAll(".layer")) {
    layer.style.backgroundPositionY = last ? `${(100 * place) / last}%` : "0";
  }
  const number = slider.dataset.numbers.split(" ")[place];
  plane.querySelector("output").textContent = number;
  slider.setAttribute("aria-valuetext", `slice ${number}`);
}

for (const viewer of document.querySelectorAll(".viewer")) {
  const control = (name) => viewer.querySelector(`[data-control=${name}]`);
  for (const plane of viewer.querySelectorAll(".plane")) {
    const slider = plane.querySelector(".slider");
    slider.addEventListener("input", () => showSlice(plane));
    plane.querySelector(".stack").addEventListener("wheel", (event) => {
      if (slider.max === "0") return;
      event.preventDefault();
      slider.value = Number(slider.value) + Math.sign(event.deltaY);
      showSlice(plane);
    }, { passive: false });
  }
  const paint = () => {
    for (const layer of viewer.querySelectorAll(".mask")) layer.style.opacity = control("opacity").value / 100;
    const filter = `brightness(${control("brightness").value}%) contrast(${control("contrast").value}%)`;
    for (const layer of viewer.querySelectorAll(".image")) layer.style.filter = filter;
    viewer.classList.toggle("hides-prediction", !control("prediction").checked);
    if (control("truth")) viewer.classList.toggle("shows-truth", control("truth").checked);
  };
  viewer.addEventListener("input", paint);
}
