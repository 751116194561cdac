"""Small versions of everything: a random LLaVA backbone, a stream of small tasks on disk, the CLI as a process."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import socketserver
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIDE, PATCH, WIDTH = 24, 12, 32
IMAGE_TOKENS = (SIDE // PATCH) ** 2
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 60), "blue": (40, 60, 220), "yellow": (220, 220, 40)}
TASKS, UNSEEN = ("colours", "halves"), "brightness"
NARROW = "threshold_scale = 1.0"  # the features of a random backbone are so close that the default accepts other tasks
PROCESSOR = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "full",
    "num_additional_image_tokens": 0,
    "chat_template": TEMPLATE,
    "image_token": "<image>",
}


def build_backbone(folder: Path, *, seed: int = 0) -> Path:
    """Write model and processor as `save_pretrained` does: 2 + 2 layers, width 32, 4 image tokens, one token per byte."""
    import torch
    from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = build_tokenizer()
    size = {"height": SIDE, "width": SIDE}
    mean = std = [0.5] * 3
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=mean, image_std=std, do_convert_rgb=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(_config(tokenizer))
    model.save_pretrained(folder)
    LlavaProcessor(images, tokenizer, **PROCESSOR).save_pretrained(folder)
    return folder


def build_tokenizer() -> Any:
    """A tokenizer with one token per byte, and the special tokens of `TEMPLATE`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<user>", "<assistant>", "<image>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    parts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=parts, pad_token="<pad>", eos_token="<end>", additional_special_tokens=special[2:]
    )


def _config(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

    depth = {"hidden_size": WIDTH, "num_hidden_layers": 2}
    vision = SiglipVisionConfig(
        **depth, intermediate_size=48, num_attention_heads=2, image_size=SIDE, patch_size=PATCH, vision_use_head=False
    )
    text = LlamaConfig(
        **depth, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        # Large enough that answers differ between images and between experts, which the tests of routing rely on.
        initializer_range=0.3,
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full", vision_feature_layer=-1, image_seq_length=IMAGE_TOKENS,
    )  # fmt: skip


def tiling_processor(tokenizer: Any) -> Any:
    """A LLaVA-NeXT processor: an image becomes a thumbnail and one to four tiles, depending on its size."""
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    grids = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grids
    )
    return LlavaNextProcessor(images, tokenizer, **PROCESSOR)


def draw_expert(sites: Any, rank: int, *, scale: float, generator: Any, spread: float) -> Any:
    """An expert on sites with random A and B, normally distributed with standard deviation `spread`."""
    import torch

    from dmole_cli.experts.expert import Expert

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * spread

    return Expert({s.name: (draw(rank, s.in_features), draw(s.out_features, rank)) for s in sites}, scale=scale)


def record(image: str | list[str] | None, question: str, answer: str) -> dict[str, Any]:
    """One LLaVA record."""
    images = [image] if isinstance(image, str) else image or []
    marked = "<image>" * len(images) + "\n" if images else ""
    turns = [{"from": "human", "value": f"{marked}{question}"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} | ({"image": image} if image else {})


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")


def write_task(folder: Path, name: str, *, train: int = 40, test: int = 10, card: str = "") -> Path:
    """Write one task's images (PNG), its JSON lines and its card; returns the card's path.

    `colours` asks for the colour of a plain image, `halves` for the white half of a striped one, `brightness` for light or
    dark: three questions and three kinds of images, so that routers can tell them apart.
    """
    data = folder / name
    (data / "pictures").mkdir(parents=True)
    choose = random.Random(name)
    for split, count in (("train", train), ("validation", 2), ("test", test)):
        rows = []
        for index in range(count):
            file = f"{split}-{index}.png"
            question, answer = _draw(name, data / "pictures" / file, choose)
            rows.append(record(file, question, answer))
        write_records(data / f"{split}.jsonl", rows)
    path = folder / f"{name}.toml"
    path.write_text(
        f'title = "{name}"\nformat = "llava"\nprompt = "{{question}}"\nmetric = "exact_match"\n{card}\n'
        "[generation]\nmax_new_tokens = 4\n"
        "[recipe]\nepochs = 12\nbatch_size = 8\nlearning_rate = 0.01\n"
        "[data]\n" + "".join(f'{split} = "{name}/{split}.jsonl"\n' for split in ("train", "validation", "test")) + ""
        f'images = "{name}/pictures"\n',
        encoding="utf-8",
    )
    return path


def _draw(task: str, path: Path, choose: random.Random) -> tuple[str, str]:
    from PIL import Image, ImageDraw

    side = SIDE + choose.randrange(9)
    if task == "colours":
        answer = choose.choice(sorted(COLOURS))
        colour = tuple(value + choose.randrange(-20, 21) for value in COLOURS[answer])
        Image.new("RGB", (side, side), colour).save(path)
        return "Colour?", answer[0]
    if task == "halves":
        answer = choose.choice(("left", "right"))
        image = Image.new("RGB", (side, side), (choose.randrange(40), 0, choose.randrange(40)))
        half = (0, 0, side // 2, side) if answer == "left" else (side // 2, 0, side, side)
        draw = ImageDraw.Draw(image)
        draw.rectangle(half, fill=(255, 255, 255))
        draw.line((0, choose.randrange(side), side, choose.randrange(side)), fill=(250, 200, 0))
        image.save(path)
        return "Which half is white, left or right?", answer[:1]
    level = choose.randrange(256)
    Image.new("L", (side, side), level).save(path)
    return "Is it light or dark in here? 0 or 1", str(int(level > 127))


def write_stream(folder: Path, *, seed: int = 0, settings: str = "") -> Path:
    """Write backbone, three tasks (the last one is never trained) and `dmole.toml`; returns the folder.

    The device is set to CPU because the tests compare bytes, also on machines with a GPU.
    """
    build_backbone(folder / "backbone", seed=seed)
    for name in (*TASKS, UNSEEN):
        write_task(folder / "tasks", name)
    listed = ", ".join(f'"tasks/{name}.toml"' for name in TASKS)
    (folder / "dmole.toml").write_text(
        f'backbone = "backbone"\ndevice = "cpu"\ntasks = [{listed}]\nunseen = ["tasks/{UNSEEN}.toml"]\n'
        '[profile]\nportion = 0.4\nbatch_size = 4\n[allocate]\nbudget = "4%"\nrank = 4\nalpha = 8.0\n'
        f"[router]\nepochs = 60\n{NARROW}\n{settings}",
        encoding="utf-8",
    )
    return folder


def shorten(folder: Path, *, epochs: int = 2) -> Path:
    """Reduce the epochs in the cards of a stream, for tests that need experts but no accuracy; returns the folder."""
    for card in (folder / "tasks").glob("*.toml"):
        text = card.read_text(encoding="utf-8")
        card.write_text(text.replace("epochs = 12", f"epochs = {epochs}"), encoding="utf-8")
    return folder


def environment(**extra: str) -> dict[str, str]:
    """This process' environment with one thread, no network, and the package under test first on the path."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "DMOLE_TRACEBACK": "1",
        **extra,
    }


def dmole(
    *args: object, cwd: Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command line tool in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "dmole_cli", *map(str, args)],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def succeed(*args: object, cwd: Path, run: Any = dmole) -> subprocess.CompletedProcess[str]:
    """Run a command and assert that it succeeds."""
    done = run(*args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


class Forks:
    """`dmole` commands without start-up time: forked from a process that has imported the libraries (see forking.py)."""

    def __init__(self, folder: Path, *, package: Path = ROOT) -> None:
        """Start the process; the package is imported from the folder `package`."""
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py"))],
            env=environment(PYTHONWARNINGS="ignore::DeprecationWarning", PYTHONPATH=str(package)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        *args: object,
        cwd: Path,
        largest_file: int | None = None,
        batches: Path | None = None,
        kill_at: int = 0,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; its output goes through named pipes.

        Args:
            args: of the command line.
            cwd: its folder.
            largest_file: bytes that no file may exceed.
            batches: file that gets a byte for every batch that is computed.
            kill_at: kills the process when that file has so many bytes, before the batch is stored.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        command = [str(part) for part in args]
        outputs = []
        threads = []
        for name in ("out", "err"):
            pipe = self.folder / name
            pipe.unlink(missing_ok=True)
            os.mkfifo(pipe)
            threads.append(threading.Thread(target=lambda p=pipe, n=name: outputs.append((n, p.read_bytes()))))
            threads[-1].start()
        request = {
            "args": command,
            "cwd": str(cwd),
            "out": str(self.folder / "out"),
            "err": str(self.folder / "err"),
            "largest": largest_file,
            "batches": str(batches) if batches else None,
            "kill_at": kill_at,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the forking process has ended"
        for thread in threads:
            thread.join(timeout=60)
        texts = {name: content.decode("utf-8") for name, content in outputs}
        return subprocess.CompletedProcess(command, int(answer), texts["out"], texts["err"])

    def close(self) -> None:
        """End the forking process."""
        self.process.kill()
        self.process.wait()


class Interpreter:
    """A replacement for `python` in scripts that run `python -m dmole_cli`: the command is forked by `Forks` instead.

    Other modules and scripts run in the usual interpreter.
    """

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.program, address = folder / "python", str(folder / "socket")
        self.program.write_text(
            f"#!{sys.executable} -SE\nimport json, os, socket, sys\n"
            f"if 'dmole_cli' not in sys.argv: os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
            f"line = socket.socket(socket.AF_UNIX)\nline.connect({address!r})\n"
            "file = line.makefile('rw', encoding='utf-8')\n"
            "args = sys.argv[sys.argv.index('dmole_cli') + 1:]\n"
            "print(json.dumps([args, os.getcwd()]), file=file, flush=True)\n"
            "code, out, err = json.loads(file.readline())\nsys.stderr.write(err)\nsys.stdout.write(out)\n"
            "sys.stdout.flush()\nos._exit(code)\n",
            encoding="utf-8",
        )
        self.program.chmod(0o755)
        one_at_a_time = threading.Lock()

        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                args, cwd = json.loads(self.rfile.readline())
                with one_at_a_time:
                    done = forks(*args, cwd=cwd)
                with suppress(BrokenPipeError):  # the caller was killed meanwhile
                    self.wfile.write(json.dumps([done.returncode, done.stdout, done.stderr]).encode() + b"\n")

        self.server = socketserver.ThreadingUnixStreamServer(address, Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def script(self, path: Path, *args: object) -> list[str]:
        """The command line of a script whose own `python -m dmole_cli` commands are to be forked."""
        program = (
            f"import runpy, sys\nsys.path.insert(0, {str(path.parent)!r})\nsys.argv = {[path.name, *map(str, args)]!r}\n"
            f"sys.executable = {str(self.program)!r}\nrunpy.run_path({str(path)!r}, run_name='__main__')"
        )
        return [sys.executable, "-c", program]

    def close(self) -> None:
        """Stop the server."""
        self.server.shutdown()
        self.server.server_close()


def digest(content: bytes) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def proposed(error: str) -> list[str]:
    """The command that an error proposes."""
    [line] = [line for line in error.splitlines() if line.startswith("  -> ")]
    return shlex.split(line.partition("run: dmole ")[2])


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents of the artifacts below a folder by relative path; costs, caches and figures of steps contain measured times."""
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if not {"costs", "cache", "training", "run.toml"} & set(Path(name).parts)
    }
