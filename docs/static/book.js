// What scrolls sideways (a figure on a phone, a wide table) can be reached by the keyboard, too.
function reachable() {
  for (const part of document.querySelectorAll(".picture, .bd-article table")) {
    if (part.scrollWidth > part.clientWidth) {
      part.tabIndex = 0;
    } else {
      part.removeAttribute("tabindex");
    }
  }
}

addEventListener("load", reachable);
addEventListener("resize", reachable);
