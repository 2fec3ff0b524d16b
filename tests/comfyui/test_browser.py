"""The first five minutes in a real browser: pytest tests/comfyui/test_browser.py -m browser

Needs a Chromium (apt install chromium; CHROMIUM names another) and playwright (pip install -e ".[comfyui]"). Screenshots go to
output/screenshots; --write-pictures also renews the two that README shows.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from unifusion_core.shapes.evaluation.judging import judge_picture
from unifusion_core.shapes.world.captions import parse_caption
from unifusion_core.shapes.world.requirements import Requirement

if TYPE_CHECKING:
    from conftest import Comfy
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

PACK = Path(__file__).parents[2]
WORKFLOWS = PACK / "workflows"
# those that need nothing but the pack
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json") if "(built in)" in path.read_text())
KREA_2 = sorted(path.stem for path in WORKFLOWS.glob("*.json") if "(built in)" not in path.read_text())
# whether Nodes 2.0 draws the nodes
CANVASES = {"classic": False, "nodes_2": True}
# canvas files of commits that changed the inputs of a node
EARLIER = sorted(
    set(PACK.glob("tests/comfyui/earlier/*.json")) - set(PACK.glob("tests/comfyui/earlier/*_api.json"))
)
SCREENSHOTS = PACK / "output" / "screenshots"
IN_README = Path(__file__).with_name("screenshots")
PATIENCE = int(os.environ.get("COMFYUI_PATIENCE", "1"))
VIEW = {"width": 1600, "height": 900}
# ComfyUI's boxes
ERRORS = re.compile(r"\d+ errors? found|Prompt execution failed|Error Report")
# share of a note's height that its text takes at least
NOTE_FILLED = 0.75
CAPTION = "big red circle at top left, small blue star at right, black background."


# The browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason='no playwright: pip install -e ".[comfyui]"'
    )
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no Chromium: apt install chromium, or name one in CHROMIUM")
    with (
        playwright.sync_playwright() as driver,
        closing(driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])) as started,
    ):
        yield started


@pytest.fixture
def page(browser: Browser, comfy: Comfy) -> Iterator[Page]:
    """ComfyUI in a fresh browser, without the tour for new users and with an empty canvas."""
    with canvas(browser, comfy) as opened:
        yield opened


@contextmanager
def canvas(browser: Browser, comfy: Comfy) -> Iterator[Page]:
    settings = {
        "Comfy.TutorialCompleted": True,
        "Comfy.VueNodes.Enabled": False,
        "Comfy.Workflow.Persist": False,
    }
    for name, value in settings.items():
        comfy.request("POST", f"/settings/{name}", value)
    with closing(browser.new_page(viewport=VIEW)) as opened:
        opened.set_default_timeout(30_000 * PATIENCE)
        open_comfyui(opened, comfy)
        run_command(opened, "Comfy.NewBlankWorkflow")
        yield opened


def open_comfyui(page: Page, comfy: Comfy) -> None:
    page.goto(f"http://127.0.0.1:{comfy.port}")
    page.wait_for_function("window.app?.graph && window.app.extensionManager?.command")
    page.get_by_role("button", name="Run", exact=True).first.wait_for()


def run_command(page: Page, command: str) -> None:
    page.evaluate("command => window.app.extensionManager.command.execute(command)", command)


def choose_template(page: Page, name: str) -> None:
    page.get_by_role("button", name="Templates").first.click()
    # the panel of errors, which may be open, has a search, too
    page.get_by_placeholder("Search ...").last.fill("unifusion")
    page.get_by_text(name, exact=True).click()
    page.wait_for_function("title => document.title.includes(title)", arg=name)
    # until the view is fitted and errors are shown
    page.wait_for_timeout(1000)


def press_run(page: Page, comfy: Comfy) -> np.ndarray:
    """The picture that the one SaveImage shows after Run."""
    before = set(comfy.request("GET", "/history")[1])
    page.get_by_role("button", name="Run", exact=True).first.click()
    deadline = time.monotonic() + 60 * PATIENCE
    while not (new := set(comfy.request("GET", "/history")[1]) - before):
        if time.monotonic() > deadline:
            keep(page, "nothing_drawn")
            pytest.fail(
                f"nothing was drawn (output/screenshots/nothing_drawn.png); the page says {errors(page)}"
            )
        page.wait_for_timeout(200)
    (done,) = new
    entry = comfy.request("GET", f"/history/{done}")[1][done]
    assert entry["status"]["status_str"] == "success", entry["status"]
    (saved,) = [
        i for out in entry["outputs"].values() for i in out.get("images", []) if i["type"] == "output"
    ]
    page.wait_for_function(
        "name => document.querySelector(`img[src*='${name}']`) || window.app.graph.nodes.some("
        "  node => node.type === 'SaveImage' && node.imgs?.some(img => img.src.includes(name)))",
        arg=saved["filename"],
    )
    return np.asarray(Image.open(comfy.base / "output" / saved["filename"]).convert("RGB"))


def errors(page: Page) -> list[str]:
    """The errors that ComfyUI shows: missing nodes, missing models, failed runs."""
    return [box.inner_text() for box in page.get_by_text(ERRORS).all() if box.is_visible()]


def keep(page: Page, name: str, *, in_readme: bool = False) -> None:
    """Saves a screenshot, and with `in_readme` the one that README shows."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    if in_readme:
        IN_README.mkdir(exist_ok=True)
        shown = Image.open(SCREENSHOTS / f"{name}.png").convert("RGB")
        shown.save(IN_README / f"{name}.jpg", quality=85)


def mostly_right(picture: np.ndarray, caption: str) -> bool:
    """Whether a picture has all objects and the background of a caption. Shapes and sizes may be wrong."""
    scene = parse_caption(caption)
    assert scene
    judgement = judge_picture(picture, Requirement.of(scene))
    return all(all(judgement.counted(name)) for name in ("count", "background", "color", "position"))


def as_without_a_browser(comfy: Comfy, picture: np.ndarray, name: str) -> bool:
    """Whether the picture equals that of the API form, which tests/comfyui/test_workflows_run.py scores."""
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    (last,) = [node for node in graph if graph[node]["class_type"] == "SaveImage"]
    (expected,) = comfy.images(comfy.successful(graph), last)
    return picture.shape == expected.shape and bool(np.abs(expected.astype(float) - picture).mean() < 1)


# Templates ------------------------------------------------------------------------------------------


def test_this_test_sees_missing_nodes_and_models(page: Page) -> None:
    text = (WORKFLOWS / "UniFusion Text to Image.json").read_text()
    broken = text.replace("UniFusionSampler", "UniFusionAbsent").replace(
        "-vae.safetensors", "-gone.safetensors"
    )

    page.evaluate("graph => window.app.loadGraphData(graph)", json.loads(broken))
    page.get_by_text(ERRORS).first.wait_for()

    assert "2 errors found" in errors(page)[0]


def test_the_template_browser_shows_every_workflow_with_its_picture(
    page: Page, request: pytest.FixtureRequest
) -> None:
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_placeholder("Search ...").fill("unifusion")
    for name in NAMES:
        page.get_by_text(name, exact=True).scroll_into_view_if_needed()
        thumbnail = page.locator(f"img[alt='{name}']")
        thumbnail.wait_for()
        size = thumbnail.evaluate("i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])")
        assert tuple(size) == Image.open(WORKFLOWS / f"{name}.jpg").size
    page.mouse.move(VIEW["width"] / 2, VIEW["height"] / 2)
    # back to the first row
    page.mouse.wheel(0, -3000)
    page.wait_for_timeout(2000)
    keep(page, "templates", in_readme=request.config.getoption("--write-pictures"))


def use_canvas(page: Page, comfy: Comfy, name: str) -> None:
    comfy.request("POST", "/settings/Comfy.VueNodes.Enabled", CANVASES[name])
    open_comfyui(page, comfy)


def boxes(page: Page) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node as it is drawn, with title and preview, by its title and id."""
    return page.evaluate(
        """() => Object.fromEntries(window.app.graph.nodes.map(node => {
            const drawn = document.querySelector(`[data-node-id="${node.id}"]`), view = window.app.canvas.ds
            let [x, y, width, height] = node.boundingRect
            if (drawn) {
                const rect = drawn.getBoundingClientRect()
                const canvas = window.app.canvas.canvas.getBoundingClientRect()
                x = (rect.x - canvas.x) / view.scale - view.offset[0]
                y = (rect.y - canvas.y) / view.scale - view.offset[1]
                width = rect.width / view.scale, height = rect.height / view.scale
            }
            return [`${node.title} (${node.id})`, [x, y, x + width, y + height]]
        }))"""
    )


def assert_apart(page: Page) -> None:
    """No node covers another, and each is inside the box of one group, a note beside them."""
    found = boxes(page)
    for (one, a), (other, b) in combinations(found.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{one} {a} covers {other} {b}"
    groups = page.evaluate("window.app.graph.groups.map(group => [...group._bounding])")
    for name, (left, top, right, bottom) in found.items():
        around = [
            (x, y, x + width, y + height)
            for x, y, width, height in groups
            if x <= left and right <= x + width and y <= top and bottom <= y + height
        ]
        assert len(around) == (not name.startswith("What to change")), (
            f"{name} {left, top, right, bottom}: {groups}"
        )


@pytest.mark.parametrize("canvas_name", CANVASES)
@pytest.mark.parametrize("name", NAMES)
def test_template_opens_and_draws(
    page: Page, comfy: Comfy, request: pytest.FixtureRequest, name: str, canvas_name: str
) -> None:
    use_canvas(page, comfy, canvas_name)
    choose_template(page, name)
    assert errors(page) == []
    assert_apart(page)

    picture = press_run(page, comfy)

    assert errors(page) == []
    keep(page, f"{name} {canvas_name}")
    assert_apart(page)
    if name == "UniFusion Text to Image with a Rewritten Prompt" and not CANVASES[canvas_name]:
        keep(page, "rewritten_prompt", in_readme=request.config.getoption("--write-pictures"))
    assert as_without_a_browser(comfy, picture, name)


@pytest.mark.parametrize("canvas_name", CANVASES)
@pytest.mark.parametrize("name", KREA_2)
def test_krea_2_template_offers_its_files_for_download(
    page: Page, comfy: Comfy, name: str, canvas_name: str
) -> None:
    use_canvas(page, comfy, canvas_name)

    choose_template(page, name)

    keep(page, f"{name} {canvas_name}")
    assert_apart(page)
    (told,) = errors(page)
    assert "3 errors found" in told
    page.get_by_role("button", name="View details").click()
    page.get_by_role("button", name="Download all").wait_for()
    keep(page, f"{name} {canvas_name}, missing files")
    for file in (
        "krea2_turbo_fp8_scaled.safetensors",
        "qwen3vl_4b_fp8_scaled.safetensors",
        "qwen_image_vae.safetensors",
    ):
        assert page.get_by_text(file).count() > 0


def test_a_newcomers_first_picture(
    browser: Browser,
    serve: Callable[..., AbstractContextManager[Comfy]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a server without earlier runs. The seconds are printed, the actions are counted."""
    actions: list[str] = []
    with serve(tmp_path / "base") as server, canvas(browser, server) as page:
        started = time.monotonic()
        for action, what in (
            (page.get_by_role("button", name="Templates").first.click, "open the templates"),
            (lambda: page.get_by_placeholder("Search ...").fill("unifusion"), "search"),
            (page.get_by_text("UniFusion Text to Image", exact=True).click, "choose"),
        ):
            action()
            actions.append(what)
        page.wait_for_function("document.title.includes('UniFusion Text to Image')")
        picture = press_run(page, server)
        actions.append("run")
        seconds = time.monotonic() - started
        assert errors(page) == []
        assert as_without_a_browser(server, picture, "UniFusion Text to Image")
    assert len(actions) <= 5
    with capsys.disabled():
        print(f"\nfirst picture after {len(actions)} actions ({', '.join(actions)}) and {seconds:.0f} s")


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_the_note_fills_its_box(page: Page, path: Path) -> None:
    page.evaluate("graph => window.app.loadGraphData(graph)", json.loads(path.read_text(encoding="utf-8")))
    note = page.locator(".comfy-markdown .tiptap").first
    note.wait_for()
    page.wait_for_timeout(500)

    box, text = note.evaluate(
        """element => {
            const range = document.createRange()
            range.selectNodeContents(element)
            const scale = element.getBoundingClientRect().height / element.offsetHeight
            return [element.clientHeight, range.getBoundingClientRect().height / scale]
        }"""
    )

    assert NOTE_FILLED * box <= text <= box, f"the text is {text:.0f} high, its box {box:.0f}"


# Errors ---------------------------------------------------------------------------------------------


def test_an_error_begins_with_its_sentence(page: Page, comfy: Comfy) -> None:
    graph = json.loads((WORKFLOWS / "UniFusion Text to Image with a Rewritten Prompt.json").read_text())
    (sampler,) = [node for node in graph["nodes"] if node["type"] == "UniFusionSampler"]
    # seed, its control, steps, cfg
    sampler["widgets_values"][3] = 0.0
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_role("button", name="View details").click()
    page.get_by_text("ComfyUI Error Report").first.wait_for()
    keep(page, "error")
    report = page.get_by_text("ComfyUI Error Report").first.inner_text()
    assert "**Exception Message:** ConfigError: cfg 0 draws what the negative describes" in report
    assert "**Exception Type:** ConfigError\n" in report


# Graphs of earlier commits ---------------------------------------------------------------------------


def saved_values(node: dict[str, Any]) -> dict[str, Any]:
    """The values of a saved node's widgets by name; of the control behind a seed there is none."""
    names = [slot["widget"]["name"] for slot in node["inputs"] if "widget" in slot]
    values = list(node.get("widgets_values", []))
    if "seed" in names and len(values) == len(names) + 1:
        del values[names.index("seed") + 1]
    assert len(names) == len(values), node
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_an_earlier_canvas_file_keeps_its_values_and_draws(page: Page, comfy: Comfy, path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    own = [node for node in graph["nodes"] if node["type"].startswith("UniFusion")]
    changed = next((node for node in own if "VerifiRewrite" in node["type"]), None)
    if changed:
        # a value that no other widget could have
        place = [s["widget"]["name"] for s in changed["inputs"] if "widget" in s].index("locked_text")
        changed["widgets_values"][place] = "big red circle at left, white background."

    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    page.wait_for_timeout(2000)

    assert errors(page) == []
    for node in own:
        found = page.evaluate(
            "id => Object.fromEntries(window.app.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))",
            node["id"],
        )
        expected = saved_values(node)
        assert {name: found[name] for name in expected} == expected
    press_run(page, comfy)
    assert errors(page) == []


# Languages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "title", "widget"),
    [("ko", "UniFusion 샘플러", "디노이즈"), ("zh", "UniFusion 采样器", "降噪")],
)
def test_nodes_are_named_in_the_users_language(
    page: Page, comfy: Comfy, language: str, title: str, widget: str
) -> None:
    comfy.request("POST", "/settings/Comfy.Locale", language)
    try:
        page.goto(f"http://127.0.0.1:{comfy.port}")
        page.wait_for_function("window.app?.graph && window.app.extensionManager?.command")
        graph = json.loads((WORKFLOWS / "UniFusion Edit an Image.json").read_text())
        page.evaluate("graph => window.app.loadGraphData(graph)", graph)
        page.wait_for_timeout(2000)
        found = page.evaluate(
            """() => {
                const node = window.LiteGraph.createNode("UniFusionSampler")
                return [node.title, ...node.widgets.map(w => w.label ?? w.name)]
            }"""
        )
        keep(page, f"language_{language}")
        assert errors(page) == []
        assert found[0] == title
        assert widget in found
    finally:
        comfy.request("POST", "/settings/Comfy.Locale", "en")


# By hand --------------------------------------------------------------------------------------------


def search(page: Page, words: str, x: int = 300, y: int = 760) -> list[str]:
    """The results of the canvas' search, best first; the search box stays open."""
    box = page.get_by_placeholder("Add a node...")
    # on a busy machine the two clicks may be too far apart
    while not box.is_visible():
        page.mouse.dblclick(x, y)
        page.wait_for_timeout(1000)
    box.fill(words)
    # results follow the typing
    page.wait_for_timeout(1500)
    return [text.split("\n")[0] for text in page.get_by_role("option").all_inner_texts()]


def place(page: Page, name: str, x: int, y: int) -> int:
    """Searches for a node and drops the first result with its title at (x, y) of the screen; returns its id."""
    assert search(page, name)[0] == name
    page.keyboard.press("Enter")
    page.mouse.move(x, y)
    page.wait_for_timeout(300)
    page.mouse.click(x, y)
    page.wait_for_timeout(300)
    return page.evaluate("Number(window.app.graph.nodes.at(-1).id)")


def socket(page: Page, node: int, side: str, name: str) -> tuple[float, float]:
    """The place of a socket on the screen."""
    return tuple(
        page.evaluate(
            """([id, side, name]) => {
                const node = window.app.graph.getNodeById(id), view = window.app.canvas.ds
                const slot = node[side].findIndex(s => s.name === name)
                const at = side === 'inputs' ? node.getInputPos(slot) : node.getOutputPos(slot)
                return [(at[0] + view.offset[0]) * view.scale, (at[1] + view.offset[1]) * view.scale]
            }""",
            [node, side, name],
        )
    )


def wire(page: Page, source: int, output: str, target: int, name: str) -> None:
    """Drag a wire from an output to an input."""
    page.mouse.move(*socket(page, source, "outputs", output))
    page.mouse.down()
    page.mouse.move(*socket(page, target, "inputs", name), steps=8)
    page.mouse.up()
    page.wait_for_timeout(200)


def type_number(page: Page, node: int, name: str, value: int) -> None:
    """Double-click a number of a node and type another."""
    x, y = page.evaluate(
        """([id, name]) => {
            const node = window.app.graph.getNodeById(id), view = window.app.canvas.ds
            const widget = node.widgets.find(w => w.name === name)
            const x = node.pos[0] + node.size[0] / 2, y = node.pos[1] + widget.last_y + 10
            return [(x + view.offset[0]) * view.scale, (y + view.offset[1]) * view.scale]
        }""",
        [node, name],
    )
    page.mouse.dblclick(x, y)
    page.locator(".graphdialog input").fill(str(value))
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("unifusion", "Load UniFusion Model"),
        ("unifusion", "Text to Image (UniFusion)"),
        ("image edit", "Image Edit (UniFusion)"),
        ("kontext", "Rewrite for UniFusion (VERIFI)"),
        ("qwen edit", "Rewrite for UniFusion (VERIFI)"),
        ("describe", "Rewrite for UniFusion (VERIFI)"),
        ("caption", "Rewrite for UniFusion (VERIFI)"),
        ("vlm", "Load UniFusion VLM"),
        ("rewrite", "Rewrite for UniFusion (VERIFI)"),
        ("lap", "Pool UniFusion Features"),
    ],
)
def test_search_finds(page: Page, words: str, expected: str) -> None:
    assert expected in search(page, words)


def test_nodes_placed_and_wired_by_hand_draw(page: Page, comfy: Comfy, trained: bool) -> None:
    model = place(page, "Load UniFusion Model", 250, 120)
    vlm = place(page, "Load UniFusion VLM", 250, 260)
    size = place(page, "EmptySD3LatentImage", 250, 400)
    vae = place(page, "Load VAE", 250, 560)
    positive = place(page, "Encode for UniFusion", 560, 120)
    negative = place(page, "Encode for UniFusion", 560, 360)
    pooled = place(page, "Pool UniFusion Features", 900, 120)
    pooled_negative = place(page, "Pool UniFusion Features", 900, 360)
    sampler = place(page, "UniFusion Sampler", 1170, 150)
    decode = place(page, "VAE Decode", 1140, 520)
    save = place(page, "Save Image", 1400, 480)
    wire(page, model, "MODEL", vlm, "model")
    for encode, pool, what in ((positive, pooled, "positive"), (negative, pooled_negative, "negative")):
        wire(page, vlm, "CLIP", encode, "clip")
        wire(page, model, "MODEL", pool, "model")
        wire(page, encode, "features", pool, "features")
        wire(page, pool, "CONDITIONING", sampler, what)
    wire(page, model, "MODEL", sampler, "model")
    wire(page, size, "LATENT", sampler, "latent")
    wire(page, sampler, "LATENT", decode, "samples")
    wire(page, vae, "VAE", decode, "vae")
    wire(page, decode, "IMAGE", save, "images")
    type_number(page, size, "width", 128)
    type_number(page, size, "height", 128)
    type_number(page, sampler, "seed", 1)
    page.locator("textarea").first.fill(CAPTION)

    picture = press_run(page, comfy)

    assert errors(page) == []
    keep(page, "by_hand")
    assert picture.shape == (128, 128, 3)
    if trained:
        assert mostly_right(picture, CAPTION)


def test_a_blueprint_found_by_search_draws(page: Page, comfy: Comfy, trained: bool) -> None:
    chain = place(page, "Text to Image (UniFusion)", 500, 150)
    save = place(page, "Save Image", 1000, 150)
    wire(page, chain, "picture", save, "images")

    picture = press_run(page, comfy)

    assert errors(page) == []
    keep(page, "blueprint")
    if trained:
        assert mostly_right(picture, CAPTION)


def test_a_picture_dropped_onto_the_canvas_brings_its_graph_back(page: Page, comfy: Comfy) -> None:
    choose_template(page, "UniFusion Edit an Image")
    press_run(page, comfy)
    run_command(page, "Comfy.NewBlankWorkflow")
    newest = max((comfy.base / "output").glob("unifusion_edit_0*.png"), key=lambda path: path.stat().st_mtime)
    content = base64.b64encode(newest.read_bytes()).decode()
    dropped = page.evaluate_handle(
        """content => {
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), transfer = new DataTransfer()
            transfer.items.add(new File([bytes], 'picture.png', {type: 'image/png'}))
            return transfer
        }""",
        content,
    )
    page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": dropped})
    page.wait_for_function("window.app.graph.nodes.length > 5")

    graph: dict[str, Any] = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    shipped = json.loads((WORKFLOWS / "api" / "UniFusion Edit an Image.json").read_text())
    assert {name: (node["class_type"], node["inputs"]) for name, node in graph.items()} == {
        name: (node["class_type"], node["inputs"]) for name, node in shipped.items()
    }
    assert page.evaluate("window.app.graph.groups.length") == 5
