// The keyboard reaches what scrolls, and the bar at the top is a landmark.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("pre, [role=main] table")) box.tabIndex = 0;
  document.querySelector(".navbar").setAttribute("role", "banner");
});
