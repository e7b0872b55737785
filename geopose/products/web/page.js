"use strict";
document.documentElement.classList.remove("no-script");
for (const stage of document.querySelectorAll(".stage")) {
  const input = stage.querySelector("input");
  if (!input) continue;
  const move = () => stage.style.setProperty("--at", input.value + "%");
  input.addEventListener("input", move);
  move();
}
for (const group of document.querySelectorAll(".switch")) {
  const card = group.closest(".card");
  const label = card.querySelector(".tag.right");
  for (const button of group.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      card.classList.toggle("heights-shown", button.dataset.show === "heights");
      label.textContent = button.textContent;
      for (const other of group.querySelectorAll("button")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
    });
  }
}
