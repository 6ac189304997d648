// What asks before it acts: ban, unban, and the token for both.

import * as api from "./api.js";
import { announce, byId, el } from "./dom.js";
import * as format from "./format.js";

const LENGTHS = [
  ["", "The ladder's next step"],
  ["600", "10 minutes"],
  ["3600", "1 hour"],
  ["86400", "24 hours"],
  ["604800", "7 days"],
  ["permanent", "Permanent"],
];

const OFF =
  "This dashboard cannot change anything: no dashboard.token is configured. Configure one, or use the command on the host:";

/**
 * Opens the dialog with a form; `act(values)` does what was asked and throws a Problem where it cannot. Resolves to
 * true when it was done, false when it was given up.
 */
function open({ title, fields, command, verb, danger, act }) {
  const dialog = byId("dialog");
  const possible = api.needs.write;
  const error = el("p", { className: "error", role: "alert", hidden: true });
  const go = el("button", { className: danger ? "danger" : "primary", type: "submit", textContent: verb });
  const cancel = el("button", { type: "button", textContent: possible ? "Cancel" : "Close" });
  const secret = el("input", { type: "password", name: "token", id: "dialog-token", autocomplete: "off", required: true });
  const asked = el("div", { className: "field", hidden: Boolean(api.token.get()) }, el("label", { htmlFor: "dialog-token" }, "Token (dashboard.token); kept until this tab is closed"), secret);
  secret.required = !asked.hidden;
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { id: "dialog-title" }, title),
    possible
      ? [fields, asked]
      : [el("p", {}, OFF), el("pre", { className: "command" }, command)],
    error,
    el("div", { className: "actions" }, cancel, possible && go),
  );
  dialog.replaceChildren(form);
  return new Promise((resolve) => {
    let done = false;
    cancel.onclick = () => dialog.close();
    dialog.onclose = () => resolve(done);
    form.onsubmit = async (event) => {
      event.preventDefault();
      if (!possible) return dialog.close();
      go.disabled = true;
      error.hidden = true;
      if (!asked.hidden) api.token.set(secret.value.trim());
      try {
        await act(Object.fromEntries(new FormData(form)));
        done = true;
        dialog.close();
      } catch (problem) {
        if (problem.status === 401) {
          api.token.forget();
          asked.hidden = false;
          secret.required = true;
          secret.value = "";
          secret.focus();
        }
        error.textContent = problem.message;
        error.hidden = false;
        go.disabled = false;
      }
    };
    dialog.showModal();
    if (!asked.hidden && possible) secret.focus();
  });
}

/** Asks for length and reason, then bans. */
export function ban(ip) {
  return open({
    title: `Ban ${ip}`,
    command: `anomaly ban ${ip}`,
    verb: "Ban",
    danger: true,
    fields: [
      el("div", { className: "field" },
        el("label", { htmlFor: "dialog-length" }, "For how long"),
        el("select", { id: "dialog-length", name: "length" }, LENGTHS.map(([value, name]) => el("option", { value }, name)))),
      el("div", { className: "field" },
        el("label", { htmlFor: "dialog-reason" }, "Why (shown wherever the ban is)"),
        el("input", { id: "dialog-reason", name: "reason", maxLength: 500, autocomplete: "off" })),
    ],
    act: async ({ length, reason }) => {
      const request = { ip, reason };
      if (length === "permanent") request.permanent = true;
      else if (length) request.duration_secs = Number(length);
      const row = await api.ban(request);
      announce(`${row.ip} is banned, ${format.length(row.duration_secs)}`);
    },
  });
}

/** Asks whether it is meant, then lifts every ban that covers the address. */
export function unban(ip) {
  return open({
    title: `Unban ${ip}`,
    command: `anomaly unban ${ip}`,
    verb: "Unban",
    fields: [el("p", {}, "Every ban that covers it is lifted, and this offence is taken back. For a while after that, only the hard limit bans it again.")],
    act: async () => {
      const lifted = await api.unban(ip);
      announce(`Lifted: ${lifted.map((row) => row.ip).join(", ")}`);
    },
  });
}
