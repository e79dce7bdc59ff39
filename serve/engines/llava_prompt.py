"""Encode a question to token ids: the checkpoint's template, tokenizer and image tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp.checkpoints.chat_template import Message, check_template, render, user_turn
from comp.checkpoints.image_prompt import with_tiles
from comp.checkpoints.tiling import Grid
from comp.errors import CompExportError
from export.artifact.llava_manifest import ChatTemplate, LlavaManifest
from export.artifact.manifest import REMEDY
from serve.engines.tokenizer import ArtifactTokenizer, shown

_PROMPT = "{prompt}"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the decoder takes it.

    Attributes:
        input_ids: ``[N]``, each image token repeated ``image_tokens`` times.
        vision, text: the positions ``0..N-1`` of image tokens ``[Nv]`` and of the others ``[Nt]``.
        tiles: tiles of each picture; 1 where pictures are not cut.
    """

    input_ids: NDArray[np.int64]
    vision: NDArray[np.int64]
    text: NDArray[np.int64]
    tiles: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return int(self.input_ids.size)

    @property
    def pictures(self) -> tuple[NDArray[np.int64], ...]:
        """Positions of the image tokens of each picture."""
        total = sum(self.tiles)
        each = self.vision.size // total if total else 0
        ends = np.cumsum(self.tiles)[:-1] * each
        return tuple(np.split(self.vision, ends)) if self.tiles else ()


class PromptEncoder:
    """The template and tokenizer of one artifact."""

    def __init__(self, manifest: LlavaManifest, tokenizer: Path) -> None:
        """Raise ``CompExportError`` if ``tokenizer.json`` or the template is unusable."""
        self._tokens = manifest.tokens
        self._image_tokens = manifest.vision.image_tokens
        self._image_prompt = manifest.image_prompt
        self._limit = manifest.decoder.max_position_embeddings
        self._chat = manifest.chat_template
        self._where = manifest.model
        self._template = manifest.prompt_template or ""
        self.tokenizer = ArtifactTokenizer(tokenizer, manifest.text_processing, self._limit)
        if self._chat is not None:
            token = manifest.tokens.image_token
            check_template(self._chat.source, self._chat.tokens, token, self._where)
        elif _PROMPT not in self._template:
            raise CompExportError(
                f"manifest.json: prompt_template {self._template!r} has no {_PROMPT}: {REMEDY}"
            )

    def render(self, prompt: str | Sequence[Message], images: int) -> str:
        """Render a prompt about this number of images with the checkpoint's chat template.

        A prompt may place its images itself, with as many image tokens as there are images; the template
        then adds none. A conversation has an image part for each image.

        Raises:
            CompExportError: the prompt is empty, or its image tokens do not match the images.
        """
        if not isinstance(prompt, str):
            return self._conversation(prompt, images)
        self.tokenizer.check(prompt, "the prompt")
        token = self._tokens.image_token
        own = prompt.count(token)
        if own not in (0, images):
            raise CompExportError(
                f"the prompt {shown(prompt)!r} has {own} {token} but there are {images} images: "
                f"give {own} images, or leave {token} out of the prompt"
            )
        if self._chat is None:
            return self._filled(prompt, images, own)
        return self._rendered(self._chat, user_turn(prompt, 0 if own else images), images)

    def _conversation(self, messages: Sequence[Message], images: int) -> str:
        """Render a conversation; its words must not contain the image token."""
        token = self._tokens.image_token
        for words in _words_of(messages):
            self.tokenizer.check(words, "the message")
            if token in words:
                raise CompExportError(
                    f"the message {shown(words)!r} contains {token}, which stands for an image: leave it out"
                )
        if self._chat is None:
            raise CompExportError(
                f"the artifact of {self._where} has no chat template, so that it takes one question and no "
                f"conversation; {REMEDY}"
            )
        return self._rendered(self._chat, list(messages), images)

    def _rendered(self, chat: ChatTemplate, messages: list[Message], images: int) -> str:
        token = self._tokens.image_token
        text = render(chat.source, chat.tokens, messages, self._where)
        if text.count(token) != images:
            raise CompExportError(
                f"the chat template of {self._where} writes {text.count(token)} {token} for {images} "
                "images, and the model needs one for each: give as many images as it writes"
            )
        return text

    def _filled(self, prompt: str, images: int, own: int) -> str:
        """Fill the prompt template of an older artifact, exported before chat templates were stored.

        The template's image token, with the white space after it, is repeated for each image, or left out
        without images.
        """
        token = self._tokens.image_token
        before, has_token, after = self._template.partition(token)
        if has_token:
            rest = after.lstrip()
            place = token + after[: len(after) - len(rest)]
            text = before + place * (0 if own else images) + rest
        elif images and not own:
            text = self._template.replace(_PROMPT, f"{token}\n" * images + _PROMPT)
        else:
            text = self._template
        return text.replace(_PROMPT, prompt)

    def encode(
        self, prompt: str | Sequence[Message], images: int, grids: Sequence[Grid] = ()
    ) -> EncodedPrompt:
        """Render, tokenise, and expand every image token.

        Args:
            prompt: as for ``render``.
            images: number of pictures.
            grids: tiles of each picture, if pictures are cut into tiles.

        Raises:
            CompExportError: the prompt is longer than the model's positions; names the limit.
        """
        text = self.render(prompt, images)
        tiles = tuple(grid.tiles for grid in grids) or (1,) * images
        if images:
            text = with_tiles(text, self._tokens.image_token, self._image_prompt, grids)
        if not isinstance(prompt, str):
            prompt = " ".join(_words_of(prompt))  # for errors
        token_ids = self._tokenizer_ids(text, prompt)
        ids = np.array(token_ids, dtype=np.int64)
        is_image = ids == self._tokens.image_token_id
        if int(is_image.sum()) != sum(tiles) and self._chat is not None:
            what = "tiles" if grids else "images"
            raise CompExportError(
                f"the prompt {shown(prompt)!r} has {int(is_image.sum())} image tokens and {sum(tiles)} "
                f"{what}: the tokenizer of {self._where} does not keep {self._tokens.image_token} "
                f"whole; {REMEDY}"
            )
        repeats = np.where(is_image, self._image_tokens, 1)
        expanded = np.repeat(ids, repeats)
        if expanded.size >= self._limit:
            of_images = int(is_image.sum()) * self._image_tokens
            raise CompExportError(
                f"the prompt {shown(prompt)!r} has {expanded.size} tokens ({of_images} of them image "
                f"tokens), the model has {self._limit} positions, one of them for the answer: shorten it to "
                f"{self._limit - 1} tokens or give fewer images"
            )
        kinds = np.repeat(is_image, repeats)
        return EncodedPrompt(expanded, np.flatnonzero(kinds), np.flatnonzero(~kinds), tiles)

    def _tokenizer_ids(self, text: str, prompt: str) -> list[int]:
        self.tokenizer.check(text, f"the prompt {shown(prompt)!r} in its template")
        if self._chat is not None:
            # As transformers' processor: a template that writes the BOS adds all special tokens itself.
            bos_token = self._chat.tokens.get("bos_token")
            framed = bos_token is not None and text.startswith(bos_token)
            return self.tokenizer.encode(text, add_special_tokens=not framed)
        ids = self.tokenizer.encode(text, add_special_tokens=self._tokens.add_bos)
        bos = self._tokens.bos_token_id
        # A template that writes the BOS itself would get a second one from the tokenizer.
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _words_of(messages: Sequence[Message]) -> list[str]:
    """The texts of a conversation, in order."""
    return [
        part["text"]
        for message in messages
        for part in message["content"]
        if part["type"] == "text"
    ]
