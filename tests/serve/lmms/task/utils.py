"""Functions of the task ``emoji_scenes``, as those of ``gqa``."""


def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs):
    before = lmms_eval_specific_kwargs["pre_prompt"]
    return f"{before}{doc['question']}{lmms_eval_specific_kwargs['post_prompt']}"
