// Browsers refuse workers to pages that are read from the file system. The search asks for one, so
// there it gets a frame that runs the same script and answers in the same way.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      const script = new URL(url, document.baseURI).href;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc =
        "<script>postMessage = (data) => parent.postMessage(data, '*');</" +
        `script><script src="${script}"></` +
        "script>";
      this.loaded = new Promise((resolve) => {
        this.frame.addEventListener("load", resolve, { once: true });
      });
      this.answer = (event) => {
        if (event.source === this.frame.contentWindow) this.onmessage?.(event);
      };
      window.addEventListener("message", this.answer);
      document.documentElement.append(this.frame);
    }

    async postMessage(message) {
      const data = structuredClone(message); // a worker's copy is its own to change
      await this.loaded;
      this.frame.contentWindow?.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      window.removeEventListener("message", this.answer);
      this.frame.remove();
    }
  };
}
