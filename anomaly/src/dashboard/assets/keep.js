// What the browser keeps for this page. A browser that blocks storage shows the page all the same, and forgets with it.

/** One value: `where` is "localStorage" or "sessionStorage". */
export class Kept {
  constructor(where, key) {
    this.where = where;
    this.key = key;
    this.value = null;
    /** Called after each change. */
    this.changed = () => {};
  }

  get() {
    try {
      return window[this.where].getItem(this.key) ?? this.value;
    } catch {
      return this.value;
    }
  }

  set(value) {
    this.value = value;
    try {
      window[this.where].setItem(this.key, value);
    } catch {
      // Blocked or full: then it lasts as long as the page.
    }
    this.changed();
  }

  forget() {
    this.value = null;
    try {
      window[this.where].removeItem(this.key);
    } catch {
      // Blocked: there is nothing to remove.
    }
    this.changed();
  }
}
