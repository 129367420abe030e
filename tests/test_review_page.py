"""The review page: its bytes, and in a real browser its keys, its player, its saved table and what a reload keeps."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.browser import Browser
from utils.figures import review_page
from utils.figures.review_page import Item, encode, write_page

LABELS = ["Rook", 'Crow, "Corvus" <b>', "Kohlmeise ä 大山雀"]
ODD_FILE = 'a & b/<i>"rook\'s" Übung 大.wav'
RATE_HZ = 16_000


def tone(hz, seconds=1.0, rate_hz=RATE_HZ):
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


def items():
    return [
        Item(LABELS[0], "best", ODD_FILE, 5.0, 6.0, 0.912345, encode(tone(500), RATE_HZ), 0.8, "2026-05-03 04:31:10"),
        Item(LABELS[0], "random", "night.wav", 0.0, 1.0, 0.01, encode(tone(1000), RATE_HZ), 0.8),
        Item(LABELS[1], "mistake", "night.wav", 1.0, 2.0, 0.7, encode(tone(2000), RATE_HZ), named=(LABELS[2], "Rook")),
        Item(LABELS[2], "threshold", "night.wav", 3600.5, 3601.5, 0.5, encode(tone(3000), RATE_HZ), 0.5, named=()),
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("review") / "review.html"
    assert write_page(path, 'Night of <wetland> & "co"', LABELS, iter(items())) == 4
    return path


def content(path):
    (text,) = re.findall(r'<script type="application/json" id="page">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(text)


def data(path, name):
    (text,) = re.findall(rf'<script type="text/plain" id="{name}">(.*?)</script>', path.read_text(encoding="utf-8"))
    return base64.b64decode(text)


# ------------------------------------------------------------------------------------------------- without a browser


def test_the_same_items_give_the_same_bytes_and_others_another_digest(page, tmp_path):
    write_page(tmp_path / "again.html", 'Night of <wetland> & "co"', LABELS, items())
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    write_page(tmp_path / "other.html", 'Night of <wetland> & "co"', LABELS, items()[:3])
    assert content(tmp_path / "other.html")["digest"] != content(page)["digest"]


def test_the_page_names_nothing_outside_itself(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"https?://|src=|@import|url\(", re.sub(r"data:[\w/]+;base64", "", text))
    assert "default-src 'none'" in text


def test_names_are_escaped_and_come_back_whole(page):
    text = page.read_text(encoding="utf-8")
    assert "<title>Night of &lt;wetland&gt; &amp; &quot;co&quot;</title>" in text
    assert "<i>" not in text and "<b>Crow" not in text
    found = content(page)
    assert found["labels"] == LABELS == found["labels_asked"]
    assert found["items"][0]["file"] == ODD_FILE and found["items"][2]["named"] == [LABELS[2], "Rook"]


def test_a_name_cannot_end_the_script_it_stands_in(tmp_path):
    item = Item("</script><script>x", "best", "</script>\n\udcff", 0.0, 1.0, 0.5, encode(tone(500), RATE_HZ))
    write_page(tmp_path / "review.html", "</title>", [item.label], [item])
    assert content(tmp_path / "review.html")["items"][0]["file"] == "</script>\\n\\udcff"


def test_times_have_a_decimal_point(page):
    assert [(item["start"], item["end"]) for item in content(page)["items"]][::3] == [
        ("5.0", "6.0"),
        ("3600.5", "3601.5"),
    ]


@pytest.mark.parametrize(
    ("rate_hz", "expected_hz"), [(16_000, 16_000), (10_000, 11_025), (250_000, 48_000), (4000, 8000)]
)
def test_a_sound_is_the_sound(tmp_path, rate_hz, expected_hz):
    hz = 0.1 * min(rate_hz, expected_hz)
    samples = tone(hz, 2.0, rate_hz)
    write_page(
        tmp_path / "review.html", "x", ["x"], [Item("x", "best", "x.wav", 0.0, 2.0, 0.5, encode(samples, rate_hz))]
    )
    heard, found_hz = soundfile.read(io.BytesIO(data(tmp_path / "review.html", "sound-0")))
    assert found_hz == expected_hz and abs(len(heard) / found_hz - 2.0) < 0.001
    power = np.abs(np.fft.rfft(heard)) ** 2
    assert abs(power.argmax() / 2.0 - hz) <= 1 and np.std(heard) == pytest.approx(np.std(samples), rel=0.05)


@pytest.mark.parametrize("hz", [1000, 3000, 7000])
def test_a_tone_is_dark_at_its_height(hz):
    with Image.open(io.BytesIO(review_page.picture(tone(hz), RATE_HZ))) as image:
        assert (image.format, image.mode) == ("JPEG", "L")
        assert image.size == (review_page.PICTURE_WIDTH, review_page.PICTURE_HEIGHT)
        rows = np.asarray(image).mean(axis=1)
    from_below = 1 - (rows.argmin() + 0.5) / len(rows)
    assert abs(8000 * from_below - hz) < 8000 / len(rows) + 32 and np.median(rows) > 250


@pytest.mark.parametrize("n_samples", [1, 100, 16_000])
def test_silence_and_very_short_sounds_have_a_picture_and_a_sound(tmp_path, n_samples):
    item = Item("x", "best", "x.wav", 0.0, n_samples / RATE_HZ, 0.5, encode(np.zeros(n_samples, np.float32), RATE_HZ))
    assert write_page(tmp_path / "review.html", "x", ["x"], [item]) == 1


def test_a_broken_item_leaves_no_page(tmp_path):
    with pytest.raises(ValueError):
        write_page(
            tmp_path / "x.html", "x", ["x"], [Item("x", "best", "x", 0.0, 1.0, np.nan, encode(tone(500), RATE_HZ))]
        )
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    (folder / "saved").mkdir()
    browser = Browser(folder / "saved", folder / "profile")
    yield browser
    browser.close()


@pytest.fixture
def browser(session, page):
    """Return a browser with the page as at its first opening."""
    session.open(page)
    session.run("localStorage.clear()")
    session.reload()
    session.wait("document.querySelector('#count').textContent === '0 of 4 answered'")
    return session


def rows_of(saved):
    return list(csv.DictReader(io.StringIO(saved.decode("utf-8"), newline="")))


def test_keys_answer_and_the_saved_table_has_each_answer(browser):
    assert browser.text("#question") == "Do you hear Rook?" and browser.text("#place") == "Sound 1 of 4"
    assert ODD_FILE in browser.text("#facts") and "0.9123 (threshold 0.8)" in browser.text("#facts")
    browser.press("y", "n")
    assert browser.text("#status").startswith("No label here. Next: Do you hear Crow")
    browser.press("o")
    browser.press(*"Jay, y", "Enter")  # the y is a letter of the name here, not an answer
    browser.press("l")
    assert browser.text("#count") == "4 of 4 answered" and "All sounds here have an answer" in browser.text("#status")
    browser.click("#save")
    saved = browser.saved()
    assert saved.startswith(b'file,start,end,label,answer,asked,why,score\n"a & b/')
    assert [
        (row["file"], row["start"], row["end"], row["label"], row["answer"], row["asked"]) for row in rows_of(saved)
    ] == [
        (ODD_FILE, "5.0", "6.0", "Rook", "yes", "Rook"),
        ("night.wav", "0.0", "1.0", "", "no", "Rook"),
        ("night.wav", "1.0", "2.0", "Jay, y", "other", LABELS[1]),
        ("night.wav", "3600.5", "3601.5", "", "as labelled", LABELS[2]),
    ]


def test_as_labelled_gives_a_row_to_each_label_and_not_sure_gives_none(browser):
    browser.press("l")
    assert browser.text("#count") == "0 of 4 answered", "this sound has not been labelled"
    browser.press("u", "u", "l")
    browser.click("#save")
    assert [(row["start"], row["label"]) for row in rows_of(browser.saved())] == [("1.0", LABELS[2]), ("1.0", "Rook")]
    assert '2 of "not sure" left out' in browser.text("#status")


def test_undo_takes_back_answer_after_answer(browser):
    browser.press("y", "n", "Left", "Left", "u")  # the third answer replaces the first
    browser.press("z")
    assert browser.run("kept.answers[0].answer") == "yes" and browser.text("#place") == "Sound 1 of 4"
    assert browser.run("document.querySelector('[data-answer=yes]').getAttribute('aria-pressed')") == "true"
    browser.press("z", "z")
    assert browser.text("#count") == "0 of 4 answered"
    browser.press("z")
    assert browser.text("#status") == "There is no answer to take back."


def test_a_reload_keeps_answers_place_and_undo(browser):
    browser.press("y", "n", "Right")
    browser.reload()
    assert (browser.text("#count"), browser.text("#place")) == ("2 of 4 answered", "Sound 4 of 4")
    browser.press("z")
    assert (browser.text("#count"), browser.text("#place")) == ("1 of 4 answered", "Sound 2 of 4")


def test_another_page_has_answers_of_its_own(browser, tmp_path):
    browser.press("y")
    write_page(tmp_path / "other.html", "x", LABELS, items()[:2])
    browser.open(tmp_path / "other.html")
    assert browser.text("#count") == "0 of 2 answered"


def test_the_player_plays_pauses_and_goes_where_the_spectrogram_is_clicked(browser):
    browser.wait("player.duration")
    assert abs(browser.run("player.duration") - 1.0) < 0.01
    browser.press("p")
    browser.wait("player.currentTime > 0.1")
    assert browser.text("#play").startswith("Pause")
    browser.press("Space")
    assert browser.run("player.paused")
    browser.wait("document.querySelector('#play').innerText.startsWith('Play')")
    browser.click("#picture")  # in its middle
    browser.wait(
        "Math.abs(player.currentTime - 0.5) < 0.05 && parseFloat(document.querySelector('#played').style.left) > 45"
    )


def test_each_sound_plays_at_once_unless_that_is_switched_off(browser):
    browser.press("y")
    browser.wait("player.currentTime > 0")
    browser.click("#plays")
    browser.press("Right")
    browser.wait("player.duration")
    assert browser.run("player.paused")


def test_single_keys_can_be_switched_off_and_buttons_do_the_same(browser):
    browser.click("#keys")
    browser.press("y")
    assert browser.text("#count") == "0 of 4 answered"
    for selector in ("[data-answer=yes]", "#next", "[data-answer=unsure]"):
        browser.click(selector)
    assert browser.run("[kept.answers[0].answer, kept.answers[2].answer]") == ["yes", "unsure"]


def test_the_field_for_another_label_offers_the_known_ones_and_escape_leaves_it(browser):
    browser.press("o")
    assert browser.run("document.activeElement.id") == "other-label"
    assert browser.run("[...document.querySelectorAll('#known option')].map(one => one.value)") == LABELS
    browser.press("Enter")
    assert browser.text("#status") == "Type a label first."
    browser.press("Escape")
    assert browser.run("document.activeElement.dataset.answer") == "other"
    browser.press(
        "Enter", *"Rook", "Enter"
    )  # opens it again by the button that has the focus; Rook is the label asked for
    assert browser.run("kept.answers[0]") == {"answer": "yes", "labels": ["Rook"]}


def test_one_label_can_be_reviewed_alone(browser):
    browser.run(f"(find('only').value = {json.dumps(LABELS[1])}, find('only').dispatchEvent(new Event('change')))")
    assert (browser.text("#place"), browser.text("#question")) == ("Sound 1 of 1", f"Do you hear {LABELS[1]}?")
    browser.press("y")
    assert "All sounds here have an answer" in browser.text("#status")
    assert browser.run("find('only').selectedOptions[0].textContent").endswith("(1 of 1)")


def test_every_control_has_a_name_and_the_tab_key_reaches_it(browser):
    nodes = browser.devtools("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "checkbox", "textbox", "image", "progressbar"}
    named = {
        (node["role"]["value"], node["name"]["value"]) for node in nodes if node.get("role", {}).get("value") in roles
    }
    assert all(name for _, name in named) and {("progressbar", "answered"), ("combobox", "Show")} <= named
    assert any(role == "image" and name.startswith("Spectrogram of a & b/<i>") for role, name in named)
    reached = []
    for _ in range(18):  # the player has controls of its own
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.id || document.activeElement.dataset.answer"))
    assert {"only", "save", "player", "yes", "no", "other", "unsure", "play", "previous", "next", "undo"} <= set(
        reached
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1000])
def test_it_fits_a_phone_and_its_text_can_be_read_in_light_and_dark(browser, width, scheme):
    browser.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=width < 500
    )
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        browser.press("Right", "Right", "Right", "o")  # to times of five characters
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert (
            browser.run("Math.max(...[...document.querySelectorAll('#seconds span')].map(one => one.offsetHeight))")
            < 25
        )
        for selector in ("#question", "dt", ".quiet", "#unit", "#save", "[data-answer=yes]", "#status"):
            assert contrast(browser, selector) >= 4.5, selector
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")
        browser.devtools("Emulation.setEmulatedMedia", features=[])


def contrast(browser, selector):
    """Return the contrast of a text with what is behind it, as WCAG 2.2 defines it."""
    look = """(function behind(element) {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : colour;
    })"""
    behind = f"{look}(document.querySelector('{selector}'))"
    colours = browser.run(f"getComputedStyle(document.querySelector('{selector}')).color"), browser.run(behind)
    levels = []
    for colour in colours:
        values = np.array(re.findall(r"\d+", colour)[:3], float) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(levels) / min(levels)


def test_a_browser_that_keeps_nothing_says_so(browser):
    browser.run("Storage.prototype.setItem = () => { throw new Error('full') }")
    browser.press("y")
    assert browser.text("#warning").startswith("This browser does not keep the answers")
    assert browser.text("#count") == "1 of 4 answered"
    browser.run("find('warning').hidden = true")  # so that no dialogue holds the next test


def test_a_page_without_items_says_so(session, tmp_path):
    assert write_page(tmp_path / "review.html", "x", LABELS, []) == 0
    session.open(tmp_path / "review.html")
    assert session.text("#count") == "There is nothing to review." and session.run("find('save').disabled")
    session.press("y", "z")
