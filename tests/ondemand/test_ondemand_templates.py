"""The app's files, rendered by Ruby as the dashboard does: what comes out is YAML, shell and HTML, whatever goes in."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ood_app
import pytest
import yaml

NASTY = [
    "/scratch/it's \"mine\"", "/a b/$(touch ran)/`touch ran`", "/a\n touch ran\n", "/x;touch ran;#", "-rf", "*", "",
    "/x' || touch ran '", "/x\\", "/${IFS}touch${IFS}ran", "<%= `touch ran` %>", "/ä ö/日本", "/a\tb", "!!", "/x\0y",
    "/x & touch ran &", "'; touch ran; '", "\"; touch ran; \"", "/x\r\ntouch ran", "$'\\n touch ran'", "{{x}}: [",
]  # fmt: skip
X = "https://x.org"
FIELDS = ("source_kind", "source_path", "env_file", "view_mode", "software", "software_venv")
WHOLE = """
portal: https://ondemand.example.org/
clusters: [one, two]
proxy: /rnode
modules: [labtrack/1.0, labtrack/2.0]
containers: [/apps/labtrack.sif]
container_binds: ["/scratch 1", "/it's"]
accounts: text
queues: none
hours: 2
hours_max: 4
native: ["--mem=4G", "--comment=a b"]
"""


def shell(text: str, folder: Path) -> None:
    """Fails unless bash and shellcheck find nothing in it."""
    file = folder / "checked.sh"
    file.write_text(text)
    for command in (["bash", "-n"], ["shellcheck", "-s", "bash", "-e", "SC2154,SC2034"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, file], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def test_form_of_the_example_settings(tmp_path: Path) -> None:
    example = (ood_app.APP / "site.example.yml").read_text()
    made = ood_app.form(ood_app.site(tmp_path / "etc", example))
    bare = ood_app.form(ood_app.site(tmp_path / "etc", "portal: https://ondemand.example.org\nclusters: [example]\n"))
    assert made == bare, "the example has other values than the defaults"
    assert made["cluster"] == ["example"]
    assert made["attributes"]["software"]["options"] == [["A Python environment of mine", "venv"]]
    assert made["attributes"]["view_mode"]["options"][0][1] == "snapshot"
    assert {"auto_accounts", "auto_queues", "bc_num_hours"} <= set(made["form"])


def test_form_of_a_site_with_everything(tmp_path: Path) -> None:
    made = ood_app.form(ood_app.site(tmp_path / "etc", WHOLE))
    assert [one[1] for one in made["attributes"]["software"]["options"]] == ["module", "container", "venv"]
    assert "bc_account" in made["form"] and not {"auto_queues", "bc_queue", "auto_accounts"} & set(made["form"])
    assert made["attributes"]["bc_num_hours"] | {"min": 1, "max": 4, "value": 2} == made["attributes"]["bc_num_hours"]
    assert made["attributes"]["labtrack_portal"] == "https://ondemand.example.org"
    # what is no hash is fixed; names that the dashboard has broken are not used
    assert set(made["attributes"]) <= set(made["form"])
    assert not {"format", "partition", "filter"} & set(made["form"])


BAD_SETTINGS = (
    ("", "portal"), (f"portal: {X}\n", "clusters"), ("[1]", "must have settings"), ("portal: [", "syntax|flow"),
    ("portal: http://x.org\nclusters: a", "portal can't be"), (f"portal: {X}/a\nclusters: a", "portal can't be"),
    (f'portal: "{X}\\nx: 1"\nclusters: a', "portal can't be"), (f"portal: {X}\nclusters: []", "clusters"),
    *(
        (f"portal: {X}\nclusters: a\n{text}", said)
        for text, said in (
            ("hour: 3", "unknown setting: hour"), ("hours: 9", "more than hours_max"),
            ("hours: soon", "hours can't be"), ("proxy: node", "proxy can't be"), ("accounts: x", "accounts can't"),
            ("modules: ['a; rm']", "modules can't be"), ("containers: [x.sif]", "containers can't be"),
        )
    ),
)  # fmt: skip


def test_bad_settings_are_named(tmp_path: Path) -> None:
    asked = []
    for number, (text, _) in enumerate(BAD_SETTINGS):
        etc = ood_app.site(tmp_path / str(number), text)
        asked.append({"file": "form.yml.erb", "kind": "form", "context": {}, "etc": etc})
    for (text, said), made in zip(BAD_SETTINGS, ood_app.render_all(asked)):
        assert re.search(said, made.get("error", "")), (text, made)


def test_missing_settings_say_what_to_do(tmp_path: Path) -> None:
    ood_app.ruby()
    with pytest.raises(RuntimeError, match=r"copies site\.example\.yml to "):
        ood_app.form(tmp_path)


def test_submission_has_the_hours_of_the_form(tmp_path: Path) -> None:
    context = ood_app.answered(ood_app.site(tmp_path / "etc", WHOLE))
    hours = {"1": 3600, "4": 14400, "9": 14400, "": 3600, "0": 3600, "x": 3600, "2\n3": 3600}
    asked = [{"file": "submit.yml.erb", "kind": "submit", "context": {**context, "bc_num_hours": one}} for one in hours]
    for seconds, rendered in zip(hours.values(), ood_app.render_all(asked)):
        made = yaml.safe_load(ood_app.text_of(rendered))
        assert made["script"] == {"wall_time": seconds, "native": ["--mem=4G", "--comment=a b"]}
        expected = {"template": "basic", "conn_params": ["labtrack_base"], "timeout": seconds - 60}
        assert made["batch_connect"] == expected


def test_manifest_and_files_are_what_the_dashboard_looks_for() -> None:
    manifest = yaml.safe_load((ood_app.APP / "manifest.yml").read_text())
    assert manifest["role"] == "batch_connect" and manifest["icon"].startswith("fas://")
    assert (ood_app.APP / "template/script.sh.erb").stat().st_mode & 0o111, "the job runs it"


@pytest.mark.parametrize("settings", ["portal: https://x.org\nclusters: a\n", WHOLE])
def test_templates_are_sound_shell(settings: str, tmp_path: Path) -> None:
    context = ood_app.answered(ood_app.site(tmp_path / "etc", settings))
    for name in ("before.sh", "script.sh", "after.sh"):
        shell(ood_app.render(f"template/{name}.erb", "template", context), tmp_path)
    shell((ood_app.APP / "template/clean.sh").read_text(), tmp_path)


def test_values_of_the_form_run_nothing(tmp_path: Path) -> None:
    etc = ood_app.site(tmp_path / "etc", WHOLE)
    context, names = ood_app.answered(etc), (*FIELDS, "software_module", "software_container")
    file = {"file": "template/script.sh.erb", "kind": "template"}
    made = ood_app.render_all([{**file, "context": {**context, **dict.fromkeys(names, one)}} for one in NASTY])
    for value, text in zip(NASTY, map(ood_app.text_of, made)):
        # all but what is done with them: only the assignments
        head = text.partition("\nfail () {")[0]
        assert head != text
        show = "\n".join(f'printf "%s\\0" "${{{name}}}"' for name in FIELDS)
        done = subprocess.run(["bash", "-c", f"{head}\n{show}"], cwd=tmp_path, capture_output=True, check=True)
        assert done.stdout.decode().split("\0")[:-1] == [value.replace("\0", "")] * len(FIELDS)
        assert not (tmp_path / "ran").exists(), value


class Form(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_button_sends_the_password_in_a_form_and_not_in_an_address() -> None:
    context = {"labtrack_base": "/node/n1/5000", "password": "abc", "host": "n1", "port": 5000}
    text = ood_app.render("view.html.erb", "view", context)
    (_, form), (_, field), *_ = Form(text).found
    assert (form["action"], form["method"]) == ("/node/n1/5000/open", "post")
    assert (field["type"], field["name"], field["value"]) == ("hidden", "password", "abc")
    # it is taken for markdown, where an empty or an indented line would end it
    assert all(line == line.strip() != "" for line in text.strip().splitlines())


@pytest.mark.parametrize("card", ["info.md.erb", "completed.md.erb"])
def test_cards_show_words_as_words(card: str, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script> <%= 1 %> **b** [x](javascript:1) \udcff\x1b[31m"
    for name in ("labtrack_said.txt", "labtrack_error.txt"):
        (tmp_path / name).write_bytes(f"left out: {nasty}\n\n    {nasty}\n".encode("utf-8", "surrogateescape"))
    text = ood_app.render(card, "card", staged_root=tmp_path)
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert {tag for tag, _ in Form(text).found} <= {"p", "br", "code", "strong"}
    # within an element that begins and ends on one line there is no markdown
    assert all(line.startswith("<p") and line.endswith("</p>") for line in text.strip().splitlines())


def test_cards_without_any_word(tmp_path: Path) -> None:
    assert ood_app.render("info.md.erb", "card", staged_root=tmp_path).strip() == ""
    assert "Nothing of it is left" in ood_app.render("completed.md.erb", "card", staged_root=tmp_path)
    (tmp_path / "labtrack_said.txt").write_text("MLflow 3 over a snapshot of /x, 10:00:00: 1 experiments, 0 runs.\n")
    assert "There are no runs" in ood_app.render("info.md.erb", "card", staged_root=tmp_path)
