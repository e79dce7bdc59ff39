"""Limits of engines: the largest request they take."""

from pydantic import Field

from comp.errors import CompExportError
from export.artifact.manifest import Count, Frozen

REBUILD = "build the engines again with `comp-export tensorrt --force {option} {value}`"


class Limits(Frozen):
    """Largest sizes of a request; optimisation profiles and caches follow from them."""

    max_batch: Count = Field(default=1, description="prompts answered in step")
    images: Count = Field(default=1, description="images of one prompt")
    max_prompt: Count = Field(default=128, description="text tokens of one prompt")
    max_new_tokens: Count = Field(default=128, description="tokens generated for one prompt")

    def check(self, batch: int, images: int, text_tokens: int, new_tokens: int) -> None:
        """Refuse a request that exceeds the limits.

        Raises:
            CompExportError: names the limit, the request's value and how to rebuild.
        """
        for option, value, limit in (
            ("--max-batch", batch, self.max_batch),
            ("--images", images, self.images),
            ("--max-prompt", text_tokens, self.max_prompt),
            ("--max-new-tokens", new_tokens, self.max_new_tokens),
        ):
            if value > limit:
                remedy = REBUILD.format(option=option, value=value)
                raise CompExportError(
                    f"the engines take {option} {limit}, this request has {value}: {remedy}"
                )
