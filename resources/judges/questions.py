"""The questions to judges. A change of a question's text needs a higher version."""

import math
from collections.abc import Mapping

from resources.judges import JudgeQuestion

SCALE_0_10 = (0.0, 10.0)


def editing_question(instruction: str) -> JudgeQuestion:
    """Return the question about a source and its edited version: is the instruction followed, is the rest unchanged?

    Two numbers, 0–10: the two sides of an edit that VIEScore (Ku et al. 2024) and EditScore ask for.
    """
    return JudgeQuestion(
        "editing",
        1,
        "You are judging an edit of a picture. The instruction was:\n"
        f"«{instruction}»\n\n"
        "Compare the two pictures and give two marks.\n"
        "prompt_following: how much of the instruction can be seen in the edited picture. 0: nothing of it, or its"
        " opposite. 5: in part, in the wrong place, or only when one knows of it. 10: all of it, as a person who gave"
        " this instruction would want it.\n"
        "consistency: how much of what the instruction does not speak of is as it was: people and their looks,"
        " things, background, framing, light and style. 0: another scene. 5: the same scene with changes nobody asked"
        " for. 10: not a difference besides the edit and what must follow from it.\n"
        "The marks do not depend on each other: an edited picture that is still the original follows nothing and is"
        " wholly consistent.",
        ("the original", "the edited picture"),
        {"prompt_following": SCALE_0_10, "consistency": SCALE_0_10},
    )


def quality_question() -> JudgeQuestion:
    """Return the question about one image: natural, and free of artifacts? 0–10 each (VIEScore's other half)."""
    return JudgeQuestion(
        "quality",
        1,
        "You are judging how well a picture is made, not what it shows. Give two marks.\n"
        "naturalness: do light, shadows, perspective, proportions and the joins between parts agree with each other?"
        " 0: they plainly do not. 5: one notices on a second look. 10: nothing seems put in or out of place.\n"
        "clean: is it free of faults of making: blur, noise, smears, seams, doubled or broken outlines, malformed"
        " hands, faces or letters? 0: full of them. 5: some. 10: none.",
        ("the picture",),
        {"naturalness": SCALE_0_10, "clean": SCALE_0_10},
    )


def overall_score(editing: Mapping[str, float], quality: Mapping[str, float]) -> float:
    """Return an edit's score, 0–10, from the answers to both questions: √(min of the one · min of the other).

    VIEScore's combination: an edit is as good as its worse side, and 0 if either is 0.
    """
    return math.sqrt(min(editing.values()) * min(quality.values()))


def inpainting_question() -> JudgeQuestion:
    """Return the question about an inpainted face: its identity, its quality, its consistency with the scene, 0–10."""
    return JudgeQuestion(
        "inpainting",
        1,
        "A character's face in a scene came out wrong and was made anew inside a mask. You are shown who the"
        " character is, the scene before and after, and the mask: white is where the scene was allowed to change."
        " Judge what is inside the mask, and give three marks.\n"
        "identity: is the face in the edited scene that of the character? Look at its shape, eyes, nose, mouth, skin,"
        " age and hair, and not at expression, pose, light or clothes. 0: plainly somebody else, or no face. 5: one"
        " could be taken for the other. 10: beyond doubt the same.\n"
        "quality: is the face well made? 0: malformed, smeared or washed out. 5: small faults. 10: as sharp and as"
        " detailed as the rest of the scene, without a fault.\n"
        "consistency: does it fit the scene: direction and size of the head, light, colour, style, and no seam where"
        " the mask ends? 0: as if pasted in from elsewhere. 5: one notices on a second look. 10: as if it had always"
        " been there.",
        (
            "the character",
            "the scene before the edit",
            "the edited scene",
            "the mask, white where the scene may have changed",
        ),
        {"identity": SCALE_0_10, "quality": SCALE_0_10, "consistency": SCALE_0_10},
    )
