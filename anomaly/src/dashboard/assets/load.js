// Asks for something again and again: never twice at a time, never in a rush, and once more where it failed.

/** From one question to the next: a hundred decisions in a second are one question. */
const PAUSE_MS = 1000;
/** Between attempts that fail, at most. */
const LONGEST_MS = 30_000;

/** Something that is asked for by `job`, and asked for again, later each time, after `failed(problem)` was called. */
export class Loader {
  constructor(job, failed) {
    this.job = job;
    this.failed = failed;
    this.timer = 0;
    this.notBefore = 0;
    this.failures = 0;
    this.running = false;
    this.again = false;
    this.urgent = false;
  }

  /** Asks as soon as the last question is answered and a second old; an `urgent` one, of somebody who clicked, at once. */
  run(urgent = false) {
    // Whoever returns to the page asks for everything.
    if (document.hidden) return;
    this.urgent ||= urgent;
    if (this.running) {
      this.again = true;
      return;
    }
    clearTimeout(this.timer);
    const wait = this.urgent ? 0 : this.notBefore - performance.now();
    if (wait > 0) this.timer = setTimeout(() => this.run(), wait);
    else this.ask();
  }

  async ask() {
    this.running = true;
    this.again = this.urgent = false;
    this.notBefore = performance.now() + PAUSE_MS;
    try {
      await this.job();
      this.failures = 0;
    } catch (problem) {
      this.failures += 1;
      this.notBefore = performance.now() + Math.min(PAUSE_MS * 2 ** this.failures, LONGEST_MS);
      this.again = true;
      this.failed(problem);
    } finally {
      this.running = false;
    }
    if (this.again) this.run();
  }
}
