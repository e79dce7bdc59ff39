"""From a question to token ids: the checkpoint's template, tokenizer and image tokens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from comp.errors import CompExportError
from export.llava_manifest import LlavaManifest
from export.manifest import REMEDY

_PROMPT = "{prompt}"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the decoder takes it; ``vision`` and ``text`` split the places ``0..N-1``."""

    input_ids: NDArray[np.int64]  # [N], each image token repeated image_tokens times
    vision: NDArray[np.int64]  # [Nv]
    text: NDArray[np.int64]  # [Nt]

    @property
    def length(self) -> int:
        return int(self.input_ids.size)


class PromptEncoder:
    """The prompt side of one artifact."""

    def __init__(self, manifest: LlavaManifest, tokenizer: Path) -> None:
        """Raises ``CompExportError`` when ``tokenizer.json`` cannot be read."""
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CompExportError(f"cannot read {tokenizer} ({error}): {REMEDY}") from error
        self._template = manifest.prompt_template
        self._tokens = manifest.tokens
        self._image_tokens = manifest.vision.image_tokens
        self._limit = manifest.decoder.max_position_embeddings
        if _PROMPT not in self._template:
            raise CompExportError(f"prompt_template {self._template!r} has no {_PROMPT}: {REMEDY}")

    def render(self, prompt: str, images: int) -> str:
        """The text of a prompt about so many images.

        The template's image place (the image token and the white space after it) is repeated for
        each image, or left out for none. A prompt that says itself where its images go, with as
        many image tokens as there are images, is taken at its word.

        Raises:
            CompExportError: when the prompt is empty or its image tokens do not match the images.
        """
        if not prompt.strip():
            raise CompExportError("the prompt is empty: ask something")
        token = self._tokens.image_token
        own = prompt.count(token)
        if own not in (0, images):
            raise CompExportError(
                f"the prompt has {own} {token} but there are {images} images: "
                f"give {own} images, or leave {token} out of the prompt"
            )
        before, found, after = self._template.partition(token)
        if found:
            rest = after.lstrip()
            place = token + after[: len(after) - len(rest)]
            text = before + place * (0 if own else images) + rest
        elif images and not own:
            text = self._template.replace(_PROMPT, f"{token}\n" * images + _PROMPT)
        else:
            text = self._template
        return text.replace(_PROMPT, prompt)

    def encode(self, prompt: str, images: int) -> EncodedPrompt:
        """Render, tokenise, and expand every image token.

        Raises:
            CompExportError: for a prompt longer than the model's positions (says the limit).
        """
        found = self._tokenizer_ids(self.render(prompt, images))
        ids = np.array(found, dtype=np.int64)
        is_image = ids == self._tokens.image_token_id
        repeats = np.where(is_image, self._image_tokens, 1)
        expanded = np.repeat(ids, repeats)
        if expanded.size >= self._limit:
            of_images = int(is_image.sum()) * self._image_tokens
            raise CompExportError(
                f"the prompt has {expanded.size} tokens ({of_images} of them image tokens), the "
                f"model has {self._limit} positions, one of them for the answer: shorten it to "
                f"{self._limit - 1} tokens or give fewer images"
            )
        kinds = np.repeat(is_image, repeats)
        return EncodedPrompt(expanded, np.flatnonzero(kinds), np.flatnonzero(~kinds))

    def _tokenizer_ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=self._tokens.add_bos).ids
        bos = self._tokens.bos_token_id
        # A template that writes the BOS itself would get a second one from the tokenizer.
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
