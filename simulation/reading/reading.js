// Slices by wheel, keys, buttons and dragging; answers by keys. Without it all slices stand below one another.
"use strict";
const stack = document.querySelector(".stack"), slices = [...stack.querySelectorAll("img")];
const scroller = document.querySelector(".scroller"), range = scroller.querySelector("input");
const form = document.querySelector("form.ask");
let now = 0;

function show(number) {
  now = Math.max(0, Math.min(slices.length - 1, number));
  slices.forEach((one, index) => one.classList.toggle("now", index === now));
  range.value = now + 1;
  scroller.querySelector("output").textContent = `${now + 1} of ${slices.length}`;
}

stack.classList.add("one");
scroller.hidden = false;
show(slices.length >> 1);

range.addEventListener("input", () => show(range.value - 1));
for (const button of scroller.querySelectorAll("button")) button.addEventListener("click", () => show(now + Number(button.dataset.step)));

const NOTCH = 50; // CSS pixels; a wheel sends a notch or more at once and moves one slice, a touchpad sends many small steps
let turned = 0;
stack.addEventListener("wheel", (event) => {
  event.preventDefault();
  const step = event.deltaMode ? NOTCH * Math.sign(event.deltaY) : event.deltaY;
  turned = Math.sign(step) === Math.sign(turned) ? turned + step : step;
  if (Math.abs(turned) < NOTCH) return;
  show(now + Math.sign(turned));
  turned = 0;
}, { passive: false });

let from = null;
stack.addEventListener("pointerdown", (event) => { from = { y: event.clientY, at: now }; stack.setPointerCapture(event.pointerId); });
stack.addEventListener("pointermove", (event) => { if (from) show(from.at + Math.round((event.clientY - from.y) / 30)); });
for (const end of ["pointerup", "pointercancel"]) stack.addEventListener(end, () => { from = null; });

function choose(input) {
  input.checked = true;
  input.focus({ preventScroll: true }); // the ring that says where one is goes with it
}

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 1, PageUp: -1 };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const choice = { r: "real", s: "synthetic" }[key] || (/^[1-5]$/.test(key) ? key : "");
  if (event.key in STEPS) show(now + STEPS[event.key]);
  else if (choice) choose(form.querySelector(`input[value="${choice}"]`));
  else if (key === "enter" && !event.repeat && event.target.tagName !== "BUTTON") form.requestSubmit();
  else return;
  event.preventDefault();
});

form.addEventListener("submit", () => { form.querySelector(".give").disabled = true; }); // one answer, however often it is clicked
