// What the page asks its server for. Every failure is a Told: one sentence for a person.

export const ENDED = ["done", "failed", "cancelled"];
const PAUSE_MS = 1000; // between two looks at a job whose events do not come
const GONE = "The server does not answer. Is it still running?";

export class Told extends Error {
  constructor(text, status = 0) {
    super(text);
    this.status = status;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");

function told(status, body) {
  if (status === 401) return new Told("The token is missing or wrong. Ask whoever runs the server for it.", status);
  let text = `The server refused this (status ${status}).`;
  try {
    const found = JSON.parse(body).error;
    if (typeof found === "string" && found) text = sentence(found);
  } catch { /* no JSON: the status is all that is known */ }
  return new Told(text, status);
}

export class Server {
  #token = "";

  use(token) {
    this.#token = token;
  }

  #headers() {
    return this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
  }

  async #ask(path, options = {}) {
    let answer;
    try {
      answer = await fetch(path, { ...options, headers: this.#headers(), credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Told(GONE);
    }
    if (!answer.ok) throw told(answer.status, await answer.text().catch(() => ""));
    return answer;
  }

  async json(path, signal) {
    return (await this.#ask(path, { signal })).json();
  }

  async bytes(path, signal) {
    const answer = await this.#ask(path, { signal });
    try {
      return await answer.arrayBuffer();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Told(GONE);
    }
  }

  async remove(id) {
    await this.#ask(`jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
  }

  // XMLHttpRequest, since fetch tells nothing of an upload on its way
  send(file, progress, signal) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", "jobs");
      for (const [name, value] of Object.entries(this.#headers())) request.setRequestHeader(name, value);
      request.setRequestHeader("X-File-Name", encodeURIComponent(file.name));
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.upload.onprogress = (event) => progress(event.lengthComputable ? event.loaded / event.total : null);
      request.onload = () => {
        if (request.status !== 200) reject(told(request.status, request.responseText));
        else resolve(JSON.parse(request.responseText));
      };
      request.onerror = () => reject(new Told(GONE));
      request.onabort = () => reject(new DOMException("aborted", "AbortError"));
      signal.addEventListener("abort", () => request.abort());
      request.send(file);
    });
  }

  // Every change of a job, to its end: by events, and by looking where they do not come.
  async watch(id, changed, signal) {
    const path = `jobs/${encodeURIComponent(id)}`;
    let job = null;
    try {
      job = await this.#follow(`${path}/events`, changed, signal);
    } catch (error) {
      if (error.name === "AbortError" || error.status === 404) throw error;
    }
    while (job === null || !ENDED.includes(job.state)) {
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      signal.throwIfAborted();
      job = await this.json(path, signal);
      changed(job);
    }
    return job;
  }

  async #follow(path, changed, signal) {
    const answer = await this.#ask(path, { signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let job = null;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return job;
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        job = JSON.parse(event.slice(6));
        changed(job);
      }
    }
  }
}
