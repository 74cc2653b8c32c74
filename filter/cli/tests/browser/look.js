// What is wrong with how the page looks; evaluated in it.
(() => {
  const wrong = [];
  const colour = (text) => {
    const [red, green, blue, alpha = 1] = text.match(/[\d.]+/g).map(Number);
    return { rgb: [red, green, blue], alpha };
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found.alpha === 1) return found.rgb;
    }
    return [255, 255, 255];
  };
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (walker.currentNode.textContent.trim() === "" || !element.checkVisibility()) continue;
    if (["SCRIPT", "title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const svg = element.closest("svg");
    const ink = colour(svg === null ? style.color : style.fill).rgb;
    // What is behind a text of a picture is a box, or the page.
    const box = element.parentElement.querySelector("rect.box");
    const behind = box === null ? ground(element) : colour(getComputedStyle(box).fill).rgb;
    const found = contrast(ink, behind);
    texts += 1;
    if (found < 4.5) wrong.push(`contrast ${found.toFixed(2)} of ${element.outerHTML.slice(0, 80)}`);
  }
  if (texts < 20) wrong.push(`only ${texts} texts`);
  if (document.documentElement.scrollWidth > innerWidth) {
    wrong.push(`the page is ${document.documentElement.scrollWidth} wide in a window of ${innerWidth}`);
  }
  for (const picture of document.querySelectorAll("svg[role=img]")) {
    if (!picture.querySelector(":scope > title") || !picture.querySelector(":scope > desc")) wrong.push("a picture without words");
  }
  const ids = Array.from(document.querySelectorAll("[id]"), (element) => element.id);
  if (new Set(ids).size !== ids.length) wrong.push("an id twice");
  for (const link of document.querySelectorAll("a")) {
    if (!document.getElementById(link.getAttribute("href").slice(1))) wrong.push(`no target: ${link.outerHTML}`);
  }
  for (const landmark of ["header", "nav[aria-label]", "main", "footer", "h1"]) {
    if (document.querySelectorAll(landmark).length !== 1) wrong.push(`not one ${landmark}`);
  }
  // Nothing that a stranger wrote has become more than a text.
  if (window.pwned !== undefined) wrong.push("a stranger's script ran");
  if (document.scripts.length !== 1) wrong.push(`${document.scripts.length} scripts`);
  for (const element of document.querySelectorAll("*")) {
    if (/^(img|iframe|object|embed|link|base|video|audio|image|use|foreignObject|marquee)$/i.test(element.tagName)) {
      wrong.push(`an element ${element.tagName}`);
    }
    for (const { name, value } of element.attributes) {
      if (/^on/i.test(name) || name === "style" || /^\s*(javascript|data):/i.test(value)) wrong.push(`an attribute ${name}`);
    }
  }
  return wrong;
})()
