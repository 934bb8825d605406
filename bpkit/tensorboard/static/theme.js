// Light or dark, as TensorBoard around this page is; on its own the page follows the browser.

export function followTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const around = outer();
  const follow = () => {
    const isDark = around ? around.classList.contains("dark-mode") : dark.matches;
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  };
  dark.addEventListener("change", follow);
  if (around) new MutationObserver(follow).observe(around, { attributes: true, attributeFilter: ["class"] });
  follow();
}

function outer() {
  try {
    return window.parent === window ? null : window.parent.document.body;
  } catch {
    return null; // framed by a page of another origin, such as a notebook's
  }
}
