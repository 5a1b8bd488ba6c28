// Every word of the page, in both languages. `say` puts one into an element and keeps it there when
// the language changes.

const WORDS = {
  en: {
    code: "en", other: "中文", otherName: "简体中文",
    dark: "Dark", light: "Light", toTheme: "Switch between light and dark",
    chat: "Chat", complete: "Complete", classify: "Classify", tag: "Tag", translate: "Translate",
    answer: "Answer", summarize: "Summarize", attend: "Attention", runs: "Training",
    tabs: "What the models can do", model: "Model", second: "Second model", settings: "Settings",
    empty: "No model here can be talked to in a browser.",
    lost: "The server does not answer. Is it still running?",
    keyTitle: "This server asks for a key",
    keyText: "It stays in this tab and is forgotten when you close it.",
    keyWrong: "This key is not accepted.", keyGive: "Continue", keyLabel: "Key",
    compare: "Compare two", fresh: "New talk", system: "System message",
    temperature: "Temperature", tokens: "Most tokens", seed: "Seed (empty: by chance)",
    chatHint: "Write something…", send: "Send", stop: "Stop", edit: "Edit", retry: "Retry",
    copy: "Copy", copied: "Copied", cancel: "Cancel", you: "You",
    chatTitle: "Talk to your model",
    chatText: "Enter sends, Shift + Enter begins a new line, Esc stops, ↑ edits what you said last.",
    writing: "writing…", stopped: "stopped", full: "reached the most tokens",
    forgot: (n) => `without the first ${n === 1 ? "turn" : `${n} turns`}, which no longer fit`,
    rate: (n, s) => `${n} tokens · ${(n / Math.max(s, 0.001)).toFixed(n / s < 10 ? 1 : 0)} per second`,
    prompt: "Text to go on from", promptHint: "Once upon a time", go: "Continue",
    completeText: "Each token is shaded by how unlikely it was. Point at one, or walk with ← and →, to see what else could have stood there; choose another to go on from it.",
    sure: "certain", unsure: "unlikely", alternatives: "Instead of this token",
    meanOf: (n, p) => `${n} tokens · perplexity ${p}`,
    text: "Text", textHint: "Paste or write a text", run: "Run", working: "working…",
    question: "Question", context: "Text that holds the answer",
    questionHint: "Who, when, where…?", result: "Result",
    why: (label) => `What speaks for “${label}”, word by word`,
    whyText: "Nats of log-odds that are lost when the word is left out. Choose a label above to ask about it.",
    for: "for", against: "against", noWords: "No word to explain.",
    noSpans: "Nothing was marked.", noAnswer: "The text does not hold an answer.",
    probability: "Probability", nothing: "The model wrote nothing.",
    shorter: (a, b) => `${a} words, from ${b}`,
    attendText: "Where each head reads. Point at a token, or walk with ← and →, to see what it looks at.",
    attendGo: "Look", layer: "Layer", head: (n) => `Head ${n}`, mean: "All heads, mean",
    heads: "Heads", cut: "Only the beginning was read.",
    looks: "looks at", matrix: "Rows look at columns; darker is more.",
    read: "What was read", written: "What was written",
    step: "step", loss: "Training loss", heldOut: "Held-out loss", nats: "nats a token",
    inTraining: "in training", over: "not in training", left: (t) => `${t} left`,
    noRuns: "No run has told anything yet.", steps: (a, b) => (b ? `step ${a} of ${b}` : `step ${a}`),
    perSecond: (n) => `${n} tokens/s`, showRun: (name) => `Show ${name}`,
  },
  zh: {
    code: "zh-CN", other: "EN", otherName: "English",
    dark: "深色", light: "浅色", toTheme: "切换浅色与深色",
    chat: "对话", complete: "续写", classify: "分类", tag: "标注", translate: "翻译",
    answer: "问答", summarize: "摘要", attend: "注意力", runs: "训练",
    tabs: "模型能做的事", model: "模型", second: "第二个模型", settings: "设置",
    empty: "这里没有可以在浏览器中使用的模型。",
    lost: "服务器没有回应。它还在运行吗？",
    keyTitle: "此服务器需要密钥",
    keyText: "密钥只保存在当前标签页，关闭后即忘记。",
    keyWrong: "密钥不正确。", keyGive: "继续", keyLabel: "密钥",
    compare: "两个模型对比", fresh: "新对话", system: "系统消息",
    temperature: "温度", tokens: "最多词元数", seed: "随机种子（留空则随机）",
    chatHint: "写点什么……", send: "发送", stop: "停止", edit: "编辑", retry: "重试",
    copy: "复制", copied: "已复制", cancel: "取消", you: "你",
    chatTitle: "和你的模型对话",
    chatText: "Enter 发送，Shift + Enter 换行，Esc 停止，↑ 编辑上一句。",
    writing: "正在书写……", stopped: "已停止", full: "已达到最多词元数",
    forgot: (n) => `最前面的 ${n} 轮已放不下，没有读`,
    rate: (n, s) => `${n} 个词元 · 每秒 ${(n / Math.max(s, 0.001)).toFixed(n / s < 10 ? 1 : 0)} 个`,
    prompt: "从这里续写", promptHint: "很久很久以前", go: "续写",
    completeText: "词元的底色越深，它的概率越低。指向词元（或用 ← → 移动）可以看到其他可能；选择其中一个，就从那里继续。",
    sure: "确定", unsure: "意外", alternatives: "这里还可以是",
    meanOf: (n, p) => `${n} 个词元 · 困惑度 ${p}`,
    text: "文本", textHint: "粘贴或输入一段文本", run: "运行", working: "正在计算……",
    question: "问题", context: "包含答案的文本",
    questionHint: "谁、何时、何地……？", result: "结果",
    why: (label) => `每个词对“${label}”的作用`,
    whyText: "去掉这个词后损失的对数几率（奈特）。点选上面的标签可以查看它的依据。",
    for: "支持", against: "反对", noWords: "没有可以解释的词。",
    noSpans: "没有标出任何内容。", noAnswer: "文本中没有答案。",
    probability: "概率", nothing: "模型什么也没有写。",
    shorter: (a, b) => `${b} 个词缩为 ${a} 个`,
    attendText: "每个注意力头在读哪里。指向一个词元（或用 ← → 移动）可以看到它在看什么。",
    attendGo: "查看", layer: "层", head: (n) => `第 ${n} 个头`, mean: "所有头的平均",
    heads: "注意力头", cut: "只读了开头部分。",
    looks: "在看", matrix: "行看列；颜色越深，权重越大。",
    read: "读到的内容", written: "写出的内容",
    step: "步", loss: "训练损失", heldOut: "验证损失", nats: "奈特/词元",
    inTraining: "训练中", over: "不在训练", left: (t) => `剩余 ${t}`,
    noRuns: "还没有训练记录。", steps: (a, b) => (b ? `第 ${a} 步，共 ${b} 步` : `第 ${a} 步`),
    perSecond: (n) => `每秒 ${n} 个词元`, showRun: (name) => `显示 ${name}`,
  },
};

let words = WORDS.en;
const said = new WeakMap(); // element → where the word goes → key and arguments

export const word = (key, ...given) =>
  typeof words[key] === "function" ? words[key](...given) : words[key];

function put(element) {
  for (const [place, [key, given]] of Object.entries(said.get(element) ?? {})) {
    if (place === "text") element.textContent = word(key, ...given);
    else element.setAttribute(place, word(key, ...given));
  }
}

/** Keep a word in an element: as its text, or in an attribute such as "placeholder". */
export function say(element, key, { as = "text", given = [] } = {}) {
  element.toggleAttribute("data-said", true);
  said.set(element, { ...said.get(element), [as]: [key, given] });
  put(element);
  return element;
}

/** Speak a language from now on: "en" or "zh". */
export function speak(language) {
  words = WORDS[language] ?? WORDS.en;
  document.documentElement.lang = words.code;
  for (const element of document.querySelectorAll("[data-word]")) {
    if (!said.has(element)) say(element, element.dataset.word);
  }
  for (const element of document.querySelectorAll("[data-said]")) put(element);
}

export const speaks = () => (words === WORDS.zh ? "zh" : "en");

/** Keys that one language has and the other lacks; a test wants none. */
export const missing = () =>
  Object.keys({ ...WORDS.en, ...WORDS.zh }).filter((k) => !(k in WORDS.en && k in WORDS.zh));
