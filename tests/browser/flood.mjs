// What a hostile client does, from whichever network namespace this runs in: one TCP connection a request, at a fixed
// rate whether or not the last one was answered, with markup wherever a client can put it.
//   node flood.mjs FROM TO RATE

import { createConnection } from "node:net";
import { MARKUP } from "./hostile.mjs";

const [from, to, rate] = process.argv.slice(2);
const request = [
  `GET /${MARKUP("path")} HTTP/1.1`,
  "Host: lab",
  `User-Agent: ${MARKUP("agent")}`,
  `X-Forwarded-For: ${MARKUP("forwarded")}`,
  `Referer: ${MARKUP("referer")}`,
  "Connection: close",
  "",
  "",
].join("\r\n");

setInterval(() => {
  const socket = createConnection({ host: to, port: 80, localAddress: from, timeout: 2000 }, () => socket.end(request));
  // Refused, dropped, cut in the middle: an attacker does not mind.
  socket.on("error", () => {}).on("timeout", () => socket.destroy()).resume();
}, 1000 / Number(rate));
