// Elements, made by script. What calls bring, words and numbers from strangers, becomes text nodes
// and nothing else: there is no way from here to HTML.

const SVG = "http://www.w3.org/2000/svg";

// h("p", { class: "muted", onclick: f }, "text", child, …). Attributes that are null or false are
// left out; children that are null or false, too.
export function h(name, attributes, ...children) {
  return build(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

// Put `text` there if it is not there already: a selection in it survives.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Make the children of `parent` be `children`, moving and removing no more than needed.
export function setChildren(parent, children) {
  let next = parent.firstChild;
  for (const child of children) {
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

// A modal dialog with a heading. It is gone from the page once it is closed; Escape closes it.
export function openDialog(title, className, ...children) {
  const heading = h("h2", { id: "dialog-title", tabindex: "-1" }, title);
  const dialog = h("dialog", { class: className, "aria-labelledby": heading.id }, heading, ...children);
  dialog.addEventListener("close", () => dialog.remove());
  // A click beside it. Its own padding is inside a child.
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && outside(dialog, event)) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function outside(dialog, { clientX, clientY }) {
  const box = dialog.getBoundingClientRect();
  return clientX < box.left || clientX > box.right || clientY < box.top || clientY > box.bottom;
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}
