// The few ways in which this page makes elements. Text only ever enters as text: nothing here parses HTML.

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * Makes an element. `props` are properties (`className`, `hidden`, `onclick`); keys with a dash, and `role`, are
 * attributes. Children are nodes or text; null and false are left out.
 */
export function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value == null) continue;
    if (key.includes("-") || key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** Sets text only where it differs, so that a selection and a screen reader's place survive the next second. */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Sets or removes an attribute, only where it differs. */
export function attr(node, name, value) {
  if (value == null || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, value);
  }
}

/** A link to the page of an address. */
export function ipLink(ip) {
  return el("a", { className: "ip", href: ipHref(ip), textContent: ip, title: ip });
}

/** Where the page of an address is. */
export function ipHref(ip) {
  return `#/ip/${encodeURIComponent(ip)}`;
}

/** Says something to those who listen rather than look; at most the newest of a burst. */
let announcing = 0;
export function announce(message) {
  clearTimeout(announcing);
  // Made anew also where it says the same: it is said again then.
  announcing = setTimeout(() => byId("announce").replaceChildren(message), 400);
}

/** Says at once that something is wrong. */
export function alarm(message) {
  byId("alarm").replaceChildren(message);
}

/** What stands in a card instead of its data: that it is awaited, that it did not come, or that there is none. */
export class Placeholder {
  constructor(node) {
    this.node = node;
    this.loading();
  }

  loading() {
    this.say("loading", "Loading");
  }

  /** There is nothing, and why. */
  none(words) {
    this.say("none", words);
  }

  /** It did not come; the button tries again. */
  failed(words, retry) {
    if (!this.say("failed", words)) return;
    const button = el("button", { type: "button", className: "small" }, "Try again");
    button.onclick = () => {
      this.loading();
      retry();
    };
    this.node.append(" ", button);
    announce(words);
  }

  /** The data is there. */
  clear() {
    this.node.hidden = true;
    this.said = null;
  }

  /** Whether that is something else than it said before: a button must not be made anew under a finger. */
  say(state, words) {
    const said = `${state} ${words}`;
    if (this.said === said) return false;
    this.said = said;
    this.node.hidden = false;
    attr(this.node, "data-state", state);
    text(this.node, words);
    return true;
  }
}

/**
 * A table whose rows are kept by key from one second to the next: focus, hover and selection stay where they are.
 * While the pointer or the focus is in it, rows do not change places: nobody bans the wrong address because
 * the list moved under the finger.
 */
export class Table {
  /** `columns`: {name, className, make(row) -> cell content, update(cell, row)}; `caption` is for screen readers. */
  constructor(host, { caption, columns, key }) {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    this.body = el("tbody", { role: "rowgroup" });
    const heads = columns.map((c) =>
      el("th", { scope: "col", role: "columnheader", className: c.className ?? "" }, c.unseen ? el("span", { className: "unseen" }, c.name) : c.name),
    );
    this.table = el(
      "table",
      { role: "table" },
      el("caption", { className: "unseen" }, caption),
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)),
      this.body,
    );
    /** Whoever shows rows says what stands here without any. */
    this.placeholder = new Placeholder(el("p", { className: "empty" }));
    host.replaceChildren(el("div", { className: "scroll", hidden: true }, this.table), this.placeholder.node);
  }

  /** Whether someone is at the table now. */
  held() {
    // A finger leaves `:hover` behind where it last touched.
    const pointer = this.body.matches(":hover") && matchMedia("(hover: hover)").matches;
    return pointer || this.body.matches(":focus-within");
  }

  /** Shows these rows; `classes(row)` names what is special about one. */
  show(rows, classes = () => "") {
    const wanted = new Set(rows.map(this.key));
    for (const [key, entry] of this.rows) {
      if (!wanted.has(key)) {
        entry.tr.remove();
        this.rows.delete(key);
      }
    }
    const held = this.held();
    let place = this.body.firstElementChild;
    for (const row of rows) {
      const key = this.key(row);
      let entry = this.rows.get(key);
      if (!entry) {
        const cells = this.columns.map((c) =>
          el("td", { role: "cell", className: c.className ?? "", "data-name": c.name }, c.make?.(row)),
        );
        entry = { tr: el("tr", { role: "row" }, cells), cells };
        this.rows.set(key, entry);
        this.body.insertBefore(entry.tr, held ? null : place);
      } else if (!held) {
        if (entry.tr === place) place = place.nextElementSibling;
        else this.body.insertBefore(entry.tr, place);
      }
      entry.row = row;
      attr(entry.tr, "class", classes(row) || null);
      this.columns.forEach((c, i) => c.update?.(entry.cells[i], row));
    }
    this.table.parentElement.hidden = rows.length === 0;
    return held;
  }
}
