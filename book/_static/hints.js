// Meanings of terms: browsers show a link's title on hover only. Here also on focus and touch.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const box = document.createElement("div");
  box.id = "hint";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  document.body.append(box);

  function show(link) {
    box.textContent = link.dataset.hint;
    box.hidden = false;
    const at = link.getBoundingClientRect();
    const room = document.documentElement.clientWidth - box.offsetWidth - 8;
    box.style.left = `${window.scrollX + Math.max(8, Math.min(at.left, room))}px`;
    const below = at.bottom + box.offsetHeight + 8 < window.innerHeight;
    const top = below ? at.bottom + 6 : at.top - box.offsetHeight - 6;
    box.style.top = `${window.scrollY + top}px`;
    link.setAttribute("aria-describedby", "hint");
  }

  function hide() {
    box.hidden = true;
    document.querySelector("[aria-describedby='hint']")?.removeAttribute("aria-describedby");
  }

  for (const link of document.querySelectorAll("a.hint[title]")) {
    link.dataset.hint = link.title;
    link.removeAttribute("title"); // else the browser shows its own on top
    for (const [event, act] of [["mouseenter", show], ["focus", show], ["mouseleave", hide], ["blur", hide]]) {
      link.addEventListener(event, () => act(link));
    }
    // On a touch screen the first tap shows the meaning, the second follows the link.
    link.addEventListener("click", (event) => {
      const touch = window.matchMedia("(hover: none)").matches;
      if (touch && link !== document.querySelector("[data-tapped]")) {
        event.preventDefault();
        document.querySelector("[data-tapped]")?.removeAttribute("data-tapped");
        link.setAttribute("data-tapped", "");
        show(link);
      }
    });
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
});
