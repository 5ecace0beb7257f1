// The dialogs that dial a number, choose who takes a call over, and confirm a hang-up.

import { h, openDialog } from "./dom.js";
import { ApiError, api } from "./session.js";
import { who } from "./words.js";

// Open the form and dial the number entered. `agents` maps each agent's name to the numbers it
// answers; `onDialled` gets the API's answer.
export function openDialForm(agents, onDialled) {
  const names = Object.keys(agents);
  const numbers = [...new Set(Object.values(agents).flat())];
  const problem = h("p", { class: "notice bad", role: "alert", hidden: true });
  const variables = h("div", { class: "variables" });
  const add = h("button", { class: "button quiet", type: "button", onclick: () => variables.append(variable()) }, "Add a variable");
  const submit = h("button", { class: "button primary", type: "submit" }, "Dial");
  const form = h(
    "form",
    { class: "dial", novalidate: true },
    field("to", "Number to call", { type: "tel", placeholder: "+15551234567", autocomplete: "off", required: true }),
    field("from", "Call from", {
      type: "tel",
      placeholder: numbers[0] ?? "+15557654321",
      autocomplete: "off",
      list: numbers.length ? "dial-numbers" : null,
    }, numbers.length ? "Leave empty for the agent’s own number." : "One of your Twilio numbers."),
    numbers.length ? h("datalist", { id: "dial-numbers" }, numbers.map((value) => h("option", { value }))) : null,
    names.length
      ? labelled("agent", "Agent", h("select", { class: "field", id: "dial-agent", name: "agent" },
          h("option", { value: "" }, "The number’s own agent"),
          names.map((name) => h("option", { value: name }, name))))
      : null,
    h(
      "fieldset",
      {},
      h("legend", {}, "Variables"),
      h("p", { class: "small muted" }, "Available as {name} in the agent’s greeting and prompt."),
      variables,
      add,
    ),
    problem,
    h(
      "div",
      { class: "foot" },
      h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"),
      submit,
    ),
  );
  const dialog = openDialog("Dial a number", "sheet small-sheet", form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    problem.hidden = true;
    for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
    try {
      onDialled(await api("/calls", { method: "POST", body: request(form) }));
      dialog.close();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const name = error.body?.field;
      problem.textContent = name ? error.message.replace(`${name}: `, "") : error.message;
      problem.hidden = false;
      const faulty = name && form.elements.namedItem(name);
      if (faulty instanceof HTMLElement) {
        faulty.setAttribute("aria-invalid", "true");
        faulty.focus();
      }
    } finally {
      submit.disabled = false;
    }
  });
  form.elements.namedItem("to").focus();
}

// Show a message.
export function tell(title, words) {
  openDialog(
    title,
    "sheet small-sheet",
    h("p", {}, words),
    h("form", { method: "dialog", class: "foot" }, h("button", { class: "button", type: "submit" }, "Close")),
  );
}

// Ask for confirmation. Resolves to true if the call is to be hung up.
export function confirmHangUp(call) {
  return new Promise((resolve) => {
    let wanted = false;
    const dialog = openDialog(
      "Hang up?",
      "sheet small-sheet",
      h("p", {}, `This ends the call with ${who(call.caller)} immediately, without a goodbye.`),
      h(
        "form",
        { method: "dialog", class: "foot" },
        h("button", { class: "button", type: "submit" }, "Keep call"),
        h("button", { class: "button danger", type: "submit", onclick: () => (wanted = true) }, "Hang up"),
      ),
    );
    dialog.addEventListener("close", () => resolve(wanted));
  });
}

// Ask who is to take a call over. Resolves to the name, or to "" if nobody is.
export function chooseTarget(call) {
  return new Promise((resolve) => {
    let chosen = "";
    const target = h(
      "select",
      { class: "field", id: "dial-target" },
      call.transfer_targets.map((name) => h("option", {}, name)),
    );
    const dialog = openDialog(
      `Transfer ${who(call.caller)}?`,
      "sheet small-sheet",
      h(
        "form",
        { method: "dialog", class: "dial" },
        labelled("target", "Transfer to", target),
        h("p", { class: "small muted" }, "The agent asks for a moment, and leaves the call."),
        h(
          "div",
          { class: "foot" },
          h("button", { class: "button", type: "submit" }, "Keep call"),
          h("button", { class: "button primary", type: "submit", onclick: () => (chosen = target.value) }, "Transfer"),
        ),
      ),
    );
    dialog.addEventListener("close", () => resolve(chosen));
    target.focus();
  });
}

function request(form) {
  const body = {};
  for (const name of ["to", "from", "agent"]) {
    const value = form.elements.namedItem(name)?.value.trim();
    if (value || name === "to") body[name] = value;
  }
  const variables = {};
  for (const row of form.querySelectorAll(".variable")) {
    const [name, value] = [...row.querySelectorAll("input")].map((input) => input.value.trim());
    if (name) variables[name] = value;
  }
  if (Object.keys(variables).length) body.variables = variables;
  return body;
}

function field(name, label, attributes, help) {
  const helpId = help ? `dial-${name}-help` : null;
  return labelled(
    name,
    label,
    h("input", { class: "field", id: `dial-${name}`, name, "aria-describedby": helpId, ...attributes }),
    help ? h("p", { class: "small muted", id: helpId }, help) : null,
  );
}

function labelled(name, label, ...rest) {
  return h("div", { class: "labelled" }, h("label", { for: `dial-${name}` }, label), ...rest);
}

function variable() {
  const row = h(
    "div",
    { class: "variable" },
    h("input", { class: "field", "aria-label": "Name", placeholder: "name", autocomplete: "off" }),
    h("input", { class: "field", "aria-label": "Value", placeholder: "value", autocomplete: "off" }),
    h("button", { class: "button quiet", type: "button", "aria-label": "Remove", onclick: () => row.remove() }, "×"),
  );
  return row;
}
