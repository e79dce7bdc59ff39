"""Libraries that write weights, graphs and pictures, on a disk that takes half a megabyte."""

import json
import subprocess
import sys
from pathlib import Path

# A limit on file size simulates a full disk: the system refuses the rest of a file.
WRITERS = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
import onnx_ir as ir
import torch
from PIL import Image
from safetensors.torch import save_file
from comp.errors import CompExportError
from comp.utils.files import writing

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
weights = torch.zeros(2**20)
noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
value = ir.Value(name="w", const_value=ir.tensor(weights.numpy(), name="w"))
model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value], name="g"), ir_version=10)
said = {}
for name, write in {
    "safetensors": lambda path: save_file({"w": weights}, path),
    "torch": lambda path: torch.save({"w": weights}, path),
    "numpy": lambda path: weights.numpy().tofile(path),
    "onnx": lambda path: ir.save(model, path, external_data=f"{path.name}.data"),
    "pillow": lambda path: Image.fromarray(noise).save(path, format="PNG"),
    "python": lambda path: path.write_bytes(bytes(2**22)),
}.items():
    try:
        with writing(Path(sys.argv[1]) / name, needed=2**22) as temporary:
            write(temporary)
    except CompExportError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_every_library_gives_the_same_disk_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path.cwd(),
    )
    messages = json.loads(done.stdout)
    assert set(messages) == {"safetensors", "torch", "numpy", "onnx", "pillow", "python"}
    for name, words in messages.items():
        assert f"while writing {tmp_path / name} (4 MiB are needed, " in words
        assert words.startswith(("file too large for this system", "quota or limit reached"))
        assert words.endswith(" MiB free): free some space")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".data"]
