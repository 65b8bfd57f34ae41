// SPDX-License-Identifier: AGPL-3.0-only
"use strict";

const WORDS = {
  zh: {
    title: "MT Photos 智能识别服务", running: "正在运行", what: "识别照片中的文字和人脸，以文搜图",
    demo: "这是演示模式：CLIP 只认颜色，人脸只认画出来的脸，请勿用于真实照片库。",
    warned: "正在使用公开的默认密钥，或没有设置密钥：请用 API_AUTH_KEY 设置自己的密钥。",
    setup: "在 MT Photos 中填写", address: "接口地址", key: "密钥（API_AUTH_KEY）", length: "自定义 CLIP 向量长度",
    key_told: "启动服务时设置的密钥；没有设置则为 mt_photos_ai_extra",
    setup_where: "在系统设置的“智能识别 API”和“人脸识别 API”中填写。", type_key: "输入密钥，查看状态和模型，试一张照片：",
    open: "打开", now: "运行状态", chart: "最近一小时每分钟的照片数", errors: "最近的错误", models: "模型", try: "试一试",
    try_told: "照片只发给本服务，不会保存。", drop: "把照片拖到这里，或点击选择", compare: "选第二张照片，比较人脸",
    words: "输入几个词，用逗号隔开，按与照片的相似度排序：", rank: "排序", bench: "这台机器有多快", measure: "测量，约半分钟",
    restart: "重启服务", api: "API 文档（OpenAPI）", leave: "退出", help: "MT Photos 使用文档", find_unused: "查找不再使用的模型文件",
    models_hint: "中文搜索：默认的 XLM-Roberta-Base 召回率 72.5%，XLM-Roberta-Large 77.2% 但慢十几倍，SigLIP2 反而更低（64–67%）。PP-OCRv6_small 与 PP-OCRv5_mobile 一样快，识别更准。buffalo_s 在东亚人脸上差很多（51 对 75），不建议。buffalo 和 antelopev2 的权重仅限非商业研究。换 CLIP 模型后要在 MT Photos 中重新识别。",
    wrong: "密钥错误。", slow: "输错密钥的次数太多，请一分钟后再试。", away: "连不上服务。", device: "运行设备", card: "未使用的设备",
    memory: "内存", card_memory: "显存", memory_told: (s) => `${s.memory.anonymous_mb} MB，另映射 ${s.memory.mapped_mb} MB（系统可随时收回）`,
    photos: "照片", photos_told: (s, m) => `启动以来 ${s.photos.total} 张，这一分钟 ${m} 张`, waiting: "排队",
    waiting_told: (w) => `照片 ${w.photos}，搜索 ${w.texts}，上传 ${w.uploads}`, up: "已运行", instance: "实例", none: "没有",
    step: ["接口", "次数", "等待", "解码", "模型", "合计（毫秒）"], head: ["模型", "运行设备", "状态", "内存 / 磁盘", ""],
    task: { ocr: "文字", clip: "搜索", faces: "人脸" },
    type: { detection: "检测", recognition: "识别", visual: "图像", textual: "文本" },
    state: { missing: "未下载", downloading: "下载中", loading: "加载中", ready: "已加载", "in use": "使用中", failed: "失败", "not loaded": "未加载" },
    comma: "，", colon: "：", days: "天", idle: (n) => `空闲 ${n} 秒`, pull: "下载", load: "加载", unload: "卸载",
    planned: (p) => `${p.ready}/${p.ready + p.waiting} 种尺寸`,
    off: (t) => `已关闭：${t}。需要时在 TASKS 中加上它的名称，再重启服务。`, prepared: "已准备",
    unused: (n, mb) => n ? `${n} 项，${mb} MB：` : "没有可删除的。", remove: "删除", removed: "已删除。", sure: "确定删除吗？",
    restarting: "正在重启……", restarted: "已重启。", text: "文字", faces: "人脸",
    nothing: "没有找到", pair: ["第一张", "第二张", "相似度", ""], same: "同一人", other: "不同的人", word: ["词", "相似度"],
    measuring: "测量中……", measured: ["识别", "一张（毫秒）", "每天（张）"],
    hint: { card: "有设备没有用上，原因见上。", int8: "用 CPU 时 int8 约快一倍：见“速度与内存”文档中的 models optimize。", threads: "线程数多于核数：不要设置 MACHINE_LEARNING_REQUEST_THREADS 和 MACHINE_LEARNING_MODEL_INTRA_OP_THREADS。", prepare: "设置 PREPARE_MODELS=true，模型加载更快、占内存更少。" },
  },
  en: {
    title: "MT Photos recognition service", running: "Up and running", what: "text and faces in photos, search by words",
    demo: "This is the demo: it recognises only colours and drawn faces. Don't index a library with it.",
    warned: "The key is the default one, which is public, or there is no key: set API_AUTH_KEY to your own key.",
    setup: "Enter in MT Photos", address: "API address", key: "Key (API_AUTH_KEY)", length: "Custom CLIP vector length",
    key_told: "the key set when the service was started; mt_photos_ai_extra if none was set",
    setup_where: "In the system settings, under both the recognition API and the face recognition API.",
    type_key: "Enter the key to see the status and models, and to try a photo:", open: "Open", now: "Now",
    chart: "photos per minute in the last hour", errors: "Latest errors", models: "Models", try: "Try it",
    try_told: "Your photo is sent only to this service, which does not keep it.", drop: "Drop a photo here, or click to choose one",
    compare: "Choose a second photo and compare faces", words: "Words, separated by commas, to rank by similarity to the photo:",
    rank: "Rank", bench: "How fast this machine is", measure: "Measure (takes half a minute)", restart: "Restart the service",
    api: "API description (OpenAPI)", leave: "Log out", help: "MT Photos documentation", find_unused: "Find unused model files",
    models_hint: "Searches in Chinese: the default XLM-Roberta-Base finds 72.5% (recall), XLM-Roberta-Large 77.2% and is over ten times slower; SigLIP2 finds less (64 to 67%). PP-OCRv6_small is as fast as PP-OCRv5_mobile and reads better. buffalo_s is far worse on East Asian faces (51 against 75). The weights of buffalo and antelopev2 are for non-commercial research only. After you change the CLIP model, index the photos again in MT Photos.",
    wrong: "The key is wrong.", slow: "Too many wrong keys; try again in a minute.", away: "The service does not answer.",
    device: "Runs on", card: "Unused device", memory: "Memory", card_memory: "Card memory",
    memory_told: (s) => `${s.memory.anonymous_mb} MB, and ${s.memory.mapped_mb} MB mapped, which the system can reclaim`,
    photos: "Photos", photos_told: (s, m) => `${s.photos.total} since the start, ${m} in this minute`, waiting: "Waiting",
    waiting_told: (w) => `${w.photos} photos, ${w.texts} searches, ${w.uploads} uploads`, up: "Up for", instance: "Instance", none: "none",
    step: ["route", "count", "wait", "decode", "model", "total (ms)"], head: ["model", "runs on", "state", "memory / disk", ""],
    task: { ocr: "text", clip: "search", faces: "faces" },
    type: { detection: "detection", recognition: "recognition", visual: "photos", textual: "words" },
    state: { missing: "not downloaded", downloading: "downloading", loading: "loading", ready: "loaded", "in use": "in use", failed: "failed", "not loaded": "not loaded" },
    comma: ", ", colon: ": ", days: "d", idle: (n) => `idle for ${n} s`, pull: "Download", load: "Load", unload: "Unload",
    planned: (p) => `${p.ready} of ${p.ready + p.waiting} shapes`,
    off: (t) => `Switched off: ${t}. To switch it on, add its name to TASKS and restart.`, prepared: "prepared",
    unused: (n, mb) => n ? `${n}, ${mb} MB:` : "There is nothing to delete.", remove: "Delete", removed: "Deleted.", sure: "Delete these?",
    restarting: "restarting …", restarted: "Restarted.", text: "Text", faces: "Faces",
    nothing: "nothing found", pair: ["first", "second", "similarity", ""], same: "the same person", other: "different people",
    word: ["word", "similarity"], measuring: "measuring …", measured: ["task", "one photo (ms)", "photos a day"],
    hint: { card: "A device is not used; the reason is above.", int8: "On the processor, int8 takes about half the time: see models optimize in the documentation.", threads: "There are more threads than cores: leave MACHINE_LEARNING_REQUEST_THREADS and MACHINE_LEARNING_MODEL_INTRA_OP_THREADS unset.", prepare: "Set PREPARE_MODELS=true: models load faster and take less memory." },
  },
};

const $ = (id) => document.getElementById(id);
const KEY = "mt-photos-ml-key", LANGUAGE = "mt-photos-ml-language", SAME = 0.5;
let language = sessionStorage.getItem(LANGUAGE) || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
let timer = 0, photo = null, tasks = {};

function say(name) { return WORDS[language][name]; }

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function row(tag, cells) {
  const made = document.createElement("tr");
  for (const cell of cells) made.append(cell instanceof Node ? cell : element(tag, String(cell)));
  return made;
}

function table(id, head, rows) {
  $(id).replaceChildren(...(rows.length ? [row("th", head), ...rows.map((cells) => row("td", cells))] : []));
}

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = say("title");
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  $("language").textContent = language === "zh" ? "English" : "中文";
  $("language").lang = language === "zh" ? "en" : "zh-CN";
  $("demo").hidden = document.body.dataset.demo !== "true";
  $("warned").hidden = document.body.dataset.warned !== "true";
}

async function ask(path, options = {}) {
  const headers = { "api-key": sessionStorage.getItem(KEY) || "", ...options.headers };
  return fetch(path, { ...options, headers });
}

// The reply's content; msg says why if the request failed.
async function answer(path, options = {}) {
  try {
    const reply = await ask(path, options), told = await reply.json();
    const msg = told.msg ?? told.detail ?? (reply.ok ? "" : String(reply.status));
    return { ...told, msg, timing: reply.headers.get("server-timing") || "" };
  } catch { return { msg: say("away"), timing: "" }; }
}

function send(path, file) {
  const form = new FormData();
  form.append("file", file);
  return answer(path, { method: "POST", body: form });
}

async function refresh() {
  clearTimeout(timer);
  if (!sessionStorage.getItem(KEY)) return;
  let problem = "";
  try {
    const reply = await ask("/api/status");
    if (reply.ok) show(await reply.json());
    else problem = reply.status === 429 ? say("slow") : say("wrong");
    if (reply.status === 401) sessionStorage.removeItem(KEY);
  } catch { problem = say("away"); }
  $("refused").textContent = problem;
  $("refused").hidden = !problem;
  const inside = Boolean(sessionStorage.getItem(KEY)) && !(problem && $("inside").hidden);
  $("inside").hidden = !inside;
  $("login").hidden = inside && !problem;
  if (sessionStorage.getItem(KEY)) timer = setTimeout(refresh, document.hidden ? 15000 : 2000);
}

function show(status) {
  tasks = status.tasks;
  $("compare").hidden = !tasks.faces;
  $("search").hidden = !tasks.clip;
  const minute = status.photos.per_minute.at(-1);
  const facts = [
    [say("device"), status.runtime], ...status.refused.map((card) => [say("card"), card]),
    [say("memory"), say("memory_told")(status)], ...(status.card_mb === null ? [] : [[say("card_memory"), `${status.card_mb} MB`]]),
    [say("photos"), say("photos_told")(status, minute)],
    [say("waiting"), say("waiting_told")(status.waiting)], [say("up"), span(status.uptime_s)],
    [say("instance"), status.instance],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  chart(status.photos.per_minute);
  table("steps", say("step"), Object.entries(status.mean_ms).map(([route, m]) => [route, m.count, m.wait, m.decode, m.model, m.total]));
  $("errors").replaceChildren(...(status.errors.length ? status.errors.map((error) => element("li",
    `${new Date(error.at * 1000).toLocaleTimeString(language)} ${error.path} ${error.status}: ${error.message}`)) : [element("li", say("none"))]));
  const focused = $("models").contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  $("models").className = "wide";
  table("models", say("head"), status.models.map(modelRow));
  if (focused) [...$("models").querySelectorAll("button")].find((button) => button.getAttribute("aria-label") === focused)?.focus();
  const off = Object.entries(status.tasks).filter(([, on]) => !on).map(([task]) => `${say("task")[task]} (${task})`);
  $("off").textContent = off.length ? say("off")(off.join(say("comma"))) : "";
}

function span(seconds) {
  const days = Math.floor(seconds / 86400), rest = new Date((seconds % 86400) * 1000).toISOString().slice(11, 19);
  return days ? `${days} ${say("days")} ${rest}` : rest;
}

function chart(counts) {
  const most = Math.max(...counts, 1), heights = counts.map((count) => (72 * count) / most);
  $("chart").replaceChildren(...heights.map((height, i) => shape("rect", { x: 6 * i, y: 80 - height, width: 5, height })));
  $("chart").setAttribute("aria-label", `${say("chart")}: ${counts.join(" ")}`);
}

function modelRow(model) {
  const state = element("td", say("state")[model.state], model.state === "failed" ? { class: "bad" } : {});
  if (model.idle_s !== null) state.append(say("comma"), say("idle")(model.idle_s));
  if (model.error) state.append(say("colon"), model.error);
  if (model.download) {
    const bar = element("progress", "", { max: model.download.total, value: model.download.done });
    const mb = (bytes) => (bytes / 1e6).toFixed(1);
    state.append(bar, ` ${mb(model.download.done)} / ${mb(model.download.total)} MB, ${mb(model.download.speed)} MB/s`);
  }
  const size = `${model.memory_mb ?? "–"} / ${model.disk_mb} MB${model.prepared ? say("comma") + say("prepared") : ""}`;
  const action = { missing: "pull", "not loaded": "load", failed: "load", ready: "unload" }[model.state];
  const plans = model.plans, times = plans?.times, cell = element("td");
  const ms = times ? `${say("comma")}${times.device.toFixed(1)} ms (CPU ${times.processor.toFixed(1)})` : "";
  const device = plans ? `${model.runs_on}${say("comma")}${say("planned")(plans)}${ms}` : model.runs_on;
  if (action) {
    const button = element("button", say(action), { type: "button", "aria-label": `${say(action)} ${model.task} ${model.type}` });
    button.onclick = async () => { button.disabled = true; $("said").textContent = (await answer(`/api/models/${model.task}/${model.type}/${action}`, { method: "POST" })).msg; refresh(); };
    cell.append(button);
  }
  return [`${say("task")[model.task]}${say("comma")}${say("type")[model.type]}${say("colon")}${model.name}${model.variant ? ` (${model.variant})` : ""}`, device, state, size, cell];
}

async function tryPhoto(file) {
  photo = { file, url: URL.createObjectURL(file) };
  $("result").hidden = false;
  for (const id of ["compared", "ranked", "timing", "text", "faces"]) $(id).replaceChildren();
  $("picture").src = photo.url;
  await $("picture").decode().catch(() => 0);
  $("boxes").replaceChildren();
  const routes = { ocr: "/ocr", faces: "/represent", clip: "/clip/img" };
  const [text, faces, seen] = await Promise.all(Object.entries(routes).map(([task, route]) => tasks[task] ? send(route, file) : {}));
  Object.assign(photo, { faces: faces.result || [], vector: seen.result, problem: seen.msg });
  $("boxes").setAttribute("viewBox", `0 0 ${$("picture").naturalWidth || 1} ${$("picture").naturalHeight || 1}`);
  $("boxes").setAttribute("preserveAspectRatio", "none");
  const lines = text.result?.texts || [];
  lines.forEach((_, i) => box("line", ...["x", "y", "width", "height"].map((side) => Number(text.result.boxes[i][side]))));
  photo.faces.forEach(({ facial_area: at }, i) => box("face", at.x, at.y, at.w, at.h, String(i + 1)));
  const timings = { ocr: text.timing, clip: seen.timing, faces: faces.timing };
  const [, , ...steps] = say("step");
  table("timing", ["", ...steps], Object.entries(timings).filter(([task]) => tasks[task]).map(([task, told]) => [say("task")[task], ...["wait", "decode", "model", "total"].map(
    (step) => told.match(new RegExp(`${step};dur=([\\d.]+)`))?.[1] ?? "–")]));
  if (tasks.ocr) $("text").replaceChildren(element("h3", say("text")), list(lines.map((line, i) => `${line} (${text.result.scores[i]})`), text.msg));
  if (tasks.faces) $("faces").replaceChildren(element("h3", say("faces")), list(photo.faces.map((face, i) => `${i + 1}: ${face.face_confidence.toFixed(2)}`), faces.msg));
}

function list(items, problem) {
  const made = document.createElement("ul");
  made.append(...(items.length ? items : [problem || say("nothing")]).map((item) => element("li", item)));
  return made;
}

function box(kind, x, y, width, height, label = "") {
  $("boxes").append(shape("rect", { class: kind, x, y, width, height }));
  if (!label) return;
  const size = Math.max($("picture").naturalWidth / 40, 10);
  const text = shape("text", { x, y: y + size, "font-size": size, "stroke-width": size / 6 });
  text.textContent = label;
  $("boxes").append(text);
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + Number(value) * Number(b[i]), 0);

async function compare(file) {
  const { result: second = [], msg } = await send("/represent", file);
  const rows = (photo.faces || []).flatMap((one, i) => second.map((two, k) => {
    const alike = dot(one.embedding, two.embedding);
    return [i + 1, k + 1, alike.toFixed(3), alike >= SAME ? say("same") : say("other")];
  }));
  table("compared", say("pair"), rows.length ? rows : [[msg || say("nothing"), "", "", ""]]);
}

async function rank(words) {
  const found = await Promise.all(words.map(async (word) => {
    const { result, msg } = await answer("/clip/txt", { method: "POST", body: JSON.stringify({ text: word }), headers: { "content-type": "application/json" } });
    return [word, result?.length && photo.vector?.length === result.length ? dot(photo.vector, result) : msg || photo.problem || "–"];
  }));
  found.sort(([, a], [, b]) => (typeof b === "number" ? b : -2) - (typeof a === "number" ? a : -2));
  table("ranked", say("word"), found.map(([word, near]) => [word, typeof near === "number" ? near.toFixed(3) : near]));
}

async function unused() {
  const { result, msg } = await answer("/api/models/unused");
  if (msg) return $("unused").replaceChildren(msg);
  const entries = Object.entries(result), sum = entries.reduce((all, [, mb]) => all + mb, 0);
  if (!entries.length) return $("unused").replaceChildren(say("unused")(0, 0));
  $("unused").replaceChildren(say("unused")(entries.length, sum), list(entries.map(([path, mb]) => `${path}, ${mb} MB`)));
  const button = element("button", say("remove"), { type: "button" });
  button.onclick = async () => {
    if (!confirm(say("sure"))) return;
    $("unused").textContent = (await answer("/api/models/unused", { method: "DELETE" })).msg || say("removed");
  };
  $("unused").append(button);
}

async function measure() {
  $("measure").disabled = true;
  $("measured").replaceChildren(row("td", [say("measuring")]));
  const { result, msg } = await answer("/api/bench", { method: "POST" });
  if (msg) $("measured").replaceChildren(row("td", [msg]));
  else table("measured", say("measured"), result.tasks.map((task) => task.problem ? [say("task")[task.task], task.problem, ""]
    : [say("task")[task.task], task.milliseconds, task.per_day.toLocaleString(language)]));
  $("hints").replaceChildren(...(result?.hints ?? []).map((hint) => element("li", say("hint")[hint.code] || hint.text)));
  $("measure").disabled = false;
}

async function restart() {
  const clicked = Date.now();
  $("said").textContent = say("restarting");
  await ask("/restart_v2", { method: "POST" }).catch(() => 0);
  let isBack = false;
  for (let tries = 0; tries < 60 && !isBack; tries++) {
    await new Promise((done) => setTimeout(done, 1000));
    const status = await answer("/api/status"); // answered by the old process while it finishes its requests
    isBack = Date.now() - 1000 * status.uptime_s > clicked - 1000;
  }
  $("said").textContent = say(isBack ? "restarted" : "away");
  refresh();
}

function choose(input, then) {
  $(input).onchange = () => { if ($(input).files[0]) then($(input).files[0]); $(input).value = ""; };
  return () => $(input).click();
}

$("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  sessionStorage.setItem(LANGUAGE, language);
  translate();
  refresh();
};
$("login").onsubmit = (event) => { event.preventDefault(); sessionStorage.setItem(KEY, $("key").value.trim()); $("key").value = ""; refresh(); };
$("leave").onclick = () => { sessionStorage.removeItem(KEY); location.reload(); };
$("restart").onclick = restart;
$("measure").onclick = measure;
$("find-unused").onclick = unused;
$("api").onclick = async () => {
  const text = JSON.stringify(await (await ask("/openapi.json")).json(), null, 2);
  window.open(URL.createObjectURL(new Blob([text], { type: "application/json" })));
};
const open = choose("photo", tryPhoto);
$("drop").onclick = open;
$("drop").onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } };
$("drop").ondragover = (event) => { event.preventDefault(); $("drop").classList.add("over"); };
$("drop").ondragleave = () => $("drop").classList.remove("over");
$("drop").ondrop = (event) => { event.preventDefault(); $("drop").classList.remove("over"); if (event.dataTransfer.files[0]) tryPhoto(event.dataTransfer.files[0]); };
$("compare").onclick = choose("second", compare);
$("search").onsubmit = (event) => { event.preventDefault(); rank($("words").value.split(/[,，、]/).map((word) => word.trim()).filter(Boolean)); };
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
if (document.body.dataset.open === "true") sessionStorage.setItem(KEY, "none"); // the service needs no key
translate();
refresh();
