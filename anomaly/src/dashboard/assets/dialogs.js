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

/** Told when the dialog is closed, or when something else needs it. */
let closed = null;

/** Shows a form in the dialog; what was asked there before is given up. */
function present(form, told) {
  const dialog = byId("dialog");
  const last = closed;
  closed = told;
  last?.();
  dialog.replaceChildren(form);
  dialog.onclose = () => {
    const last = closed;
    closed = null;
    last?.();
  };
  if (!dialog.open) dialog.showModal();
}

function field(name, label, input) {
  return el("div", { className: "field" }, el("label", { htmlFor: name }, label), input);
}

/**
 * Opens the dialog with a form; `act(values, token)` does what was asked, with a token that was typed, and throws a
 * Problem where it cannot. Resolves to true when it was done, false when it was given up.
 */
function open({ title, fields, command, verb, danger, act }) {
  const dialog = byId("dialog");
  const possible = api.needs.write;
  const error = el("p", { className: "error", role: "alert", hidden: true });
  const go = el("button", { className: danger ? "danger" : "primary", type: "submit", textContent: verb });
  const cancel = el("button", { type: "button", textContent: possible ? "Cancel" : "Close" });
  const secret = el("input", { type: "password", name: "token", id: "dialog-token", autocomplete: "off", required: true });
  const asked = field("dialog-token", "Token (dashboard.token); kept until this tab is closed", secret);
  asked.hidden = Boolean(api.token.get());
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
  return new Promise((resolve) => {
    let done = false;
    cancel.onclick = () => dialog.close();
    form.onsubmit = async (event) => {
      event.preventDefault();
      if (!possible) return dialog.close();
      go.disabled = true;
      error.hidden = true;
      // It is kept once it has proved right: what the page asks meanwhile must not be refused for it.
      const candidate = asked.hidden ? null : secret.value.trim();
      try {
        await act(Object.fromEntries(new FormData(form)), candidate);
        if (candidate) api.token.set(candidate);
        done = true;
        // Another form may have taken its place.
        if (form.isConnected) dialog.close();
      } catch (problem) {
        if (problem.status === 401) {
          if (!candidate) api.token.forget();
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
    present(form, () => resolve(done));
    if (!asked.hidden && possible) secret.focus();
  });
}

let signing = null;

/** Asks for the token where reading needs it, until it is the right one. */
export function signIn() {
  signing ??= new Promise((resolve) => {
    const stale = api.token.get() != null;
    api.token.forget();
    let known = false;
    const error = el("p", { className: "error", role: "alert", hidden: !stale }, "The token of this tab is no longer valid.");
    const secret = el("input", { type: "password", id: "sign-in", autocomplete: "off", required: true });
    const go = el("button", { type: "submit", className: "primary" }, "Open");
    const form = el(
      "form",
      { method: "dialog" },
      el("h2", { id: "dialog-title" }, "This dashboard needs its token"),
      api.needs.write
        ? [
            el("p", {}, "Reading needs a token here: dashboard.token in the configuration. This tab keeps it until you close it."),
            error,
            field("sign-in", "Token", secret),
            el("div", { className: "actions" }, go),
          ]
        : el("p", {}, "Reading needs a token here, and no dashboard.token is configured. Configure one."),
    );
    form.onsubmit = async (event) => {
      event.preventDefault();
      const candidate = secret.value.trim();
      if (!candidate) return;
      go.disabled = true;
      error.hidden = true;
      try {
        await api.get("status", candidate);
        api.token.set(candidate);
        known = true;
        byId("dialog").close();
      } catch (problem) {
        error.textContent = problem.status === 401 ? "Wrong token." : problem.message;
        error.hidden = false;
        secret.select();
      } finally {
        go.disabled = false;
      }
    };
    const told = () => {
      if (!known) return present(form, told);
      signing = null;
      resolve();
    };
    present(form, told);
  });
  return signing;
}

/** Asks for length and reason, then bans. */
export function ban(ip) {
  return open({
    title: `Ban ${ip}`,
    command: `anomaly ban ${ip}`,
    verb: "Ban",
    danger: true,
    fields: [
      field("dialog-length", "For how long", el("select", { id: "dialog-length", name: "length" }, LENGTHS.map(([value, name]) => el("option", { value }, name)))),
      field("dialog-reason", "Why (shown wherever the ban is)", el("input", { id: "dialog-reason", name: "reason", maxLength: 500, autocomplete: "off" })),
    ],
    act: async ({ length, reason }, token) => {
      const request = { ip, reason };
      if (length === "permanent") request.permanent = true;
      else if (length) request.duration_secs = Number(length);
      const row = await api.ban(request, token);
      announce(
        row.kept
          ? `${row.ip} stays banned ${row.until ? `until ${row.until}` : "permanently"}: no shorter than asked for`
          : `${row.ip} is banned, ${format.length(row.duration_secs)}`,
      );
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
    act: async (_, token) => {
      const lifted = await api.unban(ip, token);
      const refused = lifted.filter((row) => row.still_refused);
      announce(refused.length === 0 ? `Lifted: ${lifted.map((row) => row.ip).join(", ")}` : refused.map((row) => `${row.ip}: the ban has ended, but ${row.still_refused}`).join("; "));
    },
  });
}
