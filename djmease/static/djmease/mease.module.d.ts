export * from "./mease.js";
export { default } from "./mease.js";
