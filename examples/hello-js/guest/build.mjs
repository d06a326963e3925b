// Makes ../hello.wasm of hello.js: the JavaScript engine and the program, started and frozen.

import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize({ sourcePath: "hello.js", witPath: "wit", worldName: "hello" });
await writeFile("../hello.wasm", component);
