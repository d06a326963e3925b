// The same app as ../../hello, in JavaScript: a handler of the `fetch` event, as service workers and edge functions have it.

import { getEnvironment } from "wasi:cli/environment@0.2.10";

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

function answer(request) {
  const { pathname, search } = new URL(request.url);
  if (pathname === "/healthz") return text(200, "ok\n");
  if (pathname === "/echo") {
    if (request.body === null) return text(405, "POST or PUT a body and it comes back\n");
    const type = request.headers.get("content-type") ?? "application/octet-stream";
    return new Response(request.body, { headers: { "content-type": type } });
  }
  const pod = new Map(getEnvironment()).get("HOSTNAME") ?? "a pod without a name";
  return text(200, `Hello from ${pod}! You asked for ${pathname}${search}\n`);
}

function text(status, body) {
  return new Response(body, { status, headers: { "content-type": "text/plain; charset=utf-8" } });
}
