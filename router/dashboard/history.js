// The documents that have come while this page was open.

const KEPT_S = 330;
const SPARK_S = 10; // each point of a line is taken over so long
const POINTS = 120;
const SHORTEST_S = 4; // less is no window: a few requests more or less would be all that it shows

export class History {
  #states = [];

  /** Adds the newest. A router that was started again counts from zero: nothing before is of use. */
  add(state) {
    const last = this.#states.at(-1);
    if (last && last.started_at !== state.started_at) this.#states = [];
    this.#states.push({ ...state, workers: [] });
    while (this.#states[0].at < state.at - KEPT_S) this.#states.shift();
  }

  /**
   * The document to subtract for the last `seconds`; null: none, so figures are since the router's start. After a time in which
   * none came, the last one before it.
   */
  base(seconds) {
    if (!seconds) return null;
    const now = this.#states.at(-1);
    const old = this.#states.filter((state) => now.at - state.at >= SHORTEST_S);
    return old.find((state) => state.at >= now.at - seconds - 0.5) ?? old.at(-1) ?? null;
  }

  /** A short look back, for what is drawn as a line; null for the first document. */
  get recent() {
    const now = this.#states.at(-1);
    const base = this.#states.find((state) => state.at >= now.at - SPARK_S);
    return base === now ? null : base;
  }
}

/** The points of one line. */
export class Line {
  #points = [];

  add(value) {
    this.#points.push(value);
    if (this.#points.length > POINTS) this.#points.shift();
    return this.#points;
  }
}
