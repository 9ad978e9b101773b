// Browsers start no worker for a page opened from disk, and the search runs in one. There, a hidden frame stands in:
// messages go in and out as events. (Named as the shim that the theme would else fetch from a network.)
if (location.protocol === "file:")
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.inside.importScripts = () => {};
      this.ready = new Promise((ready) => {
        const script = frame.contentDocument.createElement("script");
        script.onload = ready;
        script.src = url;
        frame.contentDocument.body.appendChild(script);
      });
    }
    async postMessage(data) {
      await this.ready;
      this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
