from comp.data.emoji_scenes.question_only import QuestionOnly, measure
from comp.data.emoji_scenes.questions import KINDS, Question


def test_questions_alone_reveal_little() -> None:
    result = measure(fit=4800, test=2400)
    assert result.n == 2400
    assert set(result.by_kind) == set(KINDS)
    assert result.ci95[0] < result.accuracy < result.ci95[1] < 0.35


def test_answers_that_a_question_reveals_are_guessed() -> None:
    # The baseline learns that foxes are always at the top, and bears never present.
    examples = [
        Question(f"where is the {name}?", place, "where")
        for name, place in [("fox", "top"), ("bear", "left")]
        for _ in range(20)
    ]
    guesser = QuestionOnly(examples[::2] + examples[1::2])
    assert guesser.guess("where is the fox?", "where") == "top"
    assert guesser.guess("where is the bear?", "where") == "left"
    assert guesser.guess("where is the violin?", "where") in ("top", "left")
    assert guesser.guess("what?", "another kind") == ""


def test_answers_that_repeat_the_question_are_guessed() -> None:
    examples = [
        Question(f"are there more {a} or {b}?", a, "more")
        for a, b in [("animals", "plants"), ("foods", "vehicles"), ("objects", "foods")] * 10
    ]
    assert QuestionOnly(examples).guess("are there more plants or objects?", "more") == "plants"
