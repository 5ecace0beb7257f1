"""What a page must be for everybody: every control has a name, every text can be read.

The rules are WCAG 2.2's: 4.1.2 (name, role, value) and 1.4.3 (contrast: 4.5 to 1, large text 3),
judged by us; and all that axe-core knows, judged by it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from tests.browser.driver import Browser

# Roles that are nothing without a name; decoration is in no tree.
NAMED = {"button", "checkbox", "combobox", "dialog", "group", "heading", "image", "link", "log"}
NAMED |= {"meter", "navigation", "radio", "region", "slider", "switch", "tab", "table", "textbox"}
NAMED |= {"timer", "RootWebArea"}

# The contrast of every visible text with what is behind it; what is disabled is exempt by 1.4.3.
_UNREADABLE = """
    const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = (color) => {
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = color;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
      return [r, g, b, a / 255];
    };
    const over = (top, under) =>
      [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
    const ground = (element) => {
      const layers = [];
      for (let e = element; e; e = e.parentElement) {
        layers.push(rgba(getComputedStyle(e).backgroundColor));
      }
      return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255, 1]);
    };
    const luminance = (color) => {
      const [r, g, b] = color.slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const bad = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
      const element = node.parentElement;
      const visible = element.checkVisibility({visibilityProperty: true});
      if (!visible || !node.textContent.trim()) continue;
      if (element.closest(":disabled, .unseen, .skip, script")) continue;
      const style = getComputedStyle(element);
      const under = ground(element), text = over(rgba(style.color), under);
      const [light, dark] = [luminance(text), luminance(under)].sort((a, b) => b - a);
      const ratio = (light + 0.05) / (dark + 0.05);
      const size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
      const needed = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
      if (ratio < needed) bad.push(`${node.textContent.trim()}: ${ratio.toFixed(2)}`);
    }
    return bad;
"""


def unreadable(browser: Browser) -> list[str]:
    """Texts with too little contrast, and how much it is."""
    return list(browser.run(_UNREADABLE))


def unnamed(browser: Browser) -> list[str]:
    """What can be used or looked at, is shown, and has no name that could be read out: roles, of
    the tree that the browser gives to assistive technology."""
    nodes = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    return [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in NAMED
        and not node.get("name", {}).get("value", "").strip()
    ]


def faults(browser: Browser) -> list[str]:
    """What axe-core finds wrong with the page: its rule, and the first element that breaks it."""
    browser.run(_axe())
    found = browser.run("return axe.run(document, {resultTypes: ['violations']})")
    return [f"{rule['id']}: {rule['nodes'][0]['html'][:120]}" for rule in found["violations"]]


@cache
def _axe() -> str:
    return files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
