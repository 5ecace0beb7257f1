// Building elements. Untrusted text from calls becomes text nodes only; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

// h("p", { class: "muted", onclick: f }, "text", child, …). Attributes and children that are
// null or false are left out.
export function h(name, attributes, ...children) {
  return build(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

// Set the text only if it differs, so that a selection in it survives.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Make `children` the children of `parent`, moving and removing no more than needed.
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

// Open a modal dialog with a heading. Escape closes it, and it is removed when closed.
export function openDialog(title, className, ...children) {
  const heading = h("h2", { id: "dialog-title", tabindex: "-1" }, title);
  const dialog = h("dialog", { class: className, "aria-labelledby": heading.id }, heading, ...children);
  dialog.addEventListener("close", () => dialog.remove());
  // A click on the backdrop: the padding of the dialog belongs to a child.
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
