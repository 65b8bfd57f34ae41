# SPDX-License-Identifier: AGPL-3.0-only
"""The models we know: task, parts, files, vector length, language, where the files come from."""

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from ..settings import Settings, SettingsError, clean_name

CLIP, FACES, OCR = "clip", "facial-recognition", "ocr"
TASK_OF_FOLDER = {CLIP: "clip", FACES: "faces", OCR: "ocr"}
INT8 = "int8"
INT8_RECORD = "record.json"


@dataclass(frozen=True)
class Part:
    """One network of a model: `clip/NAME/visual`, `facial-recognition/NAME/detection`, `ocr/NAME/recognition`, …

    int8: whether its int8 variant is to be used.
    """

    folder: str
    name: str
    kind: str
    int8: bool = False

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}/{self.kind}"

    @property
    def files(self) -> tuple[str, ...]:
        """What must be there, relative to the folder of the model, the model file first."""
        model = f"{self.kind}/model.onnx"
        if self.folder != CLIP:
            return (model,)
        if self.kind == "visual":
            return model, "config.json", "visual/preprocess_cfg.json"
        return model, "config.json", "textual/tokenizer.json", "textual/tokenizer_config.json"

    def path(self, cache: Path) -> Path:
        """Its model file."""
        return cache / self.folder / self.name / self.files[0]

    def missing(self, cache: Path) -> list[str]:
        """The files that this cache does not have."""
        return [file for file in self.files if not (cache / self.folder / self.name / file).is_file()]


@dataclass(frozen=True)
class Clip:
    """A CLIP pair. length: of its vectors. languages: "en" or "many". space: models of one space fit each other."""

    length: int
    languages: str = "en"
    space: str = ""


@dataclass(frozen=True)
class OcrFile:
    """A file of RapidOCR's list: its path there, its checksum, its name in the wheel where the wheel carries it."""

    path: str
    sha256: str
    in_wheel: tuple[str, ...] = ()


def _clips(length: int, *names: str, languages: str = "en") -> dict[str, Clip]:
    return {name: Clip(length, languages, name) for name in names}


CLIP_MODELS: dict[str, Clip] = {
    **_clips(
        512,
        "RN101__openai",
        "RN101__yfcc15m",
        "ViT-B-16__laion400m_e31",
        "ViT-B-16__laion400m_e32",
        "ViT-B-16__openai",
        "ViT-B-32__laion2b-s34b-b79k",
        "ViT-B-32__laion2b_e16",
        "ViT-B-32__laion400m_e31",
        "ViT-B-32__laion400m_e32",
        "ViT-B-32__openai",
    ),
    **_clips(640, "RN50x4__openai", "ViT-B-16-plus-240__laion400m_e31", "ViT-B-16-plus-240__laion400m_e32"),
    **_clips(
        768,
        "RN50x16__openai",
        "ViT-B-16-SigLIP__webli",
        "ViT-B-16-SigLIP-256__webli",
        "ViT-B-16-SigLIP-384__webli",
        "ViT-B-16-SigLIP-512__webli",
        "ViT-L-14-336__openai",
        "ViT-L-14-quickgelu__dfn2b",
        "ViT-L-14__laion2b-s32b-b82k",
        "ViT-L-14__laion400m_e31",
        "ViT-L-14__laion400m_e32",
        "ViT-L-14__openai",
    ),
    **_clips(
        1024,
        "RN50__cc12m",
        "RN50__openai",
        "RN50__yfcc15m",
        "RN50x64__openai",
        "ViT-H-14-378-quickgelu__dfn5b",
        "ViT-H-14-quickgelu__dfn5b",
        "ViT-H-14__laion2b-s32b-b79k",
        "ViT-L-16-SigLIP-256__webli",
        "ViT-L-16-SigLIP-384__webli",
        "ViT-g-14__laion2b-s12b-b42k",
    ),
    **_clips(1152, "ViT-SO400M-14-SigLIP-384__webli"),
    **_clips(512, "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k", languages="many"),
    **_clips(1024, "XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k", languages="many"),
    **_clips(
        768,
        "ViT-B-16-SigLIP-i18n-256__webli",
        "ViT-B-16-SigLIP2__webli",
        "ViT-B-32-SigLIP2-256__webli",
        "nllb-clip-base-siglip__mrl",
        "nllb-clip-base-siglip__v1",
        languages="many",
    ),
    **_clips(
        1024,
        "ViT-L-16-SigLIP2-256__webli",
        "ViT-L-16-SigLIP2-384__webli",
        "ViT-L-16-SigLIP2-512__webli",
        languages="many",
    ),
    **_clips(
        1152,
        "ViT-SO400M-14-SigLIP2-378__webli",
        "ViT-SO400M-14-SigLIP2__webli",
        "ViT-SO400M-16-SigLIP2-256__webli",
        "ViT-SO400M-16-SigLIP2-384__webli",
        "ViT-SO400M-16-SigLIP2-512__webli",
        "nllb-clip-large-siglip__mrl",
        "nllb-clip-large-siglip__v1",
        languages="many",
    ),
    **_clips(1536, "ViT-gopt-16-SigLIP2-256__webli", "ViT-gopt-16-SigLIP2-384__webli", languages="many"),
    # MCLIP: text encoders that were taught to answer as the one of an existing pair does
    "LABSE-Vit-L-14": Clip(768, "many", "ViT-L-14__openai"),
    "XLM-Roberta-Large-Vit-L-14": Clip(768, "many", "ViT-L-14__openai"),
    "XLM-Roberta-Large-Vit-B-32": Clip(512, "many", "ViT-B-32__openai"),
    "XLM-Roberta-Large-Vit-B-16Plus": Clip(640, "many", "ViT-B-16-plus-240__laion400m_e32"),
}

FACE_MODELS = ("antelopev2", "buffalo_l", "buffalo_m", "buffalo_s")

_DET_V5 = OcrFile(
    "PP-OCRv5/det/ch_PP-OCRv5_det_mobile.onnx", "4d97c44a20d30a81aad087d6a396b08f786c4635742afc391f6621f5c6ae78ae"
)


def _v5(language: str, sha256: str) -> dict[str, OcrFile]:
    file = OcrFile(f"PP-OCRv5/rec/{language}_PP-OCRv5_rec_mobile.onnx", sha256)
    return {"detection": _DET_V5, "recognition": file}


def _v6(size: str, detection: str, recognition: str) -> dict[str, OcrFile]:
    det, rec = f"PP-OCRv6_det_{size}.onnx", f"PP-OCRv6_rec_{size}.onnx"
    return {
        "detection": OcrFile(f"PP-OCRv6/det/{det}", detection, (det,)),
        "recognition": OcrFile(f"PP-OCRv6/rec/{rec}", recognition, (rec,)),
    }


_CH_MOBILE = _v5("ch", "5825fc7ebf84ae7a412be049820b4d86d77620f204a041697b0494669b1742c5")
_CH_SERVER = {
    "detection": OcrFile(
        "PP-OCRv5/det/ch_PP-OCRv5_det_server.onnx", "0f8846b1d4bba223a2a2f9d9b44022fbc22cc019051a602b41a7fda9667e4cad"
    ),
    "recognition": OcrFile(
        "PP-OCRv5/rec/ch_PP-OCRv5_rec_server.onnx", "e09385400eaaaef34ceff54aeb7c4f0f1fe014c27fa8b9905d4709b65746562a"
    ),
}

OCR_RELEASE = "https://www.modelscope.cn/models/RapidAI/RapidOCR/resolve/v3.10.0/onnx"
OCR_MODELS: dict[str, dict[str, OcrFile]] = {
    "PP-OCRv6_tiny": _v6(
        "tiny",
        "f42c0fbd294d95eac1a550e131b277dac97462c8025fa4b6c3cec1b7894bd3d5",
        "e16e242de5937ad92609223f19bc2aff3727ee40b095f996907c24749bad251b",
    ),
    "PP-OCRv6_small": _v6(
        "small",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
    "PP-OCRv6_medium": _v6(
        "medium",
        "92078b7355007ccfffcd4c8cd441a3afd4538904d06881b29a155e1e679907c2",
        "eef444829dbbe18d7fea59a3f6eb75647518d2b3a9568d27c92e42940204894b",
    ),
    "PP-OCRv5_mobile": _CH_MOBILE,
    "PP-OCRv5_server": _CH_SERVER,
    "CH__PP-OCRv5_mobile": _CH_MOBILE,
    "CH__PP-OCRv5_server": _CH_SERVER,
    "EL__PP-OCRv5_mobile": _v5("el", "b4368bccd557123c702b7549fee6cd1e94b581337d1c9b65310f109131542b7f"),
    "EN__PP-OCRv5_mobile": _v5("en", "c3461add59bb4323ecba96a492ab75e06dda42467c9e3d0c18db5d1d21924be8"),
    "ESLAV__PP-OCRv5_mobile": _v5("eslav", "08705d6721849b1347d26187f15a5e362c431963a2a62bfff4feac578c489aab"),
    "KOREAN__PP-OCRv5_mobile": _v5("korean", "cd6e2ea50f6943ca7271eb8c56a877a5a90720b7047fe9c41a2e541a25773c9b"),
    "LATIN__PP-OCRv5_mobile": _v5("latin", "b20bd37c168a570f583afbc8cd7925603890efbcdc000a59e22c269d160b5f5a"),
    "TH__PP-OCRv5_mobile": _v5("th", "de541dd83161c241ff426f7ecfd602a0ba77d686cf3ab9a6c255ea82fd08006e"),
    # what the wheels of RapidOCR before 3.9 carry
    "PP-OCRv4_mobile": {
        "detection": OcrFile(
            "PP-OCRv4/det/ch_PP-OCRv4_det_mobile.onnx",
            "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
            ("ch_PP-OCRv4_det_infer.onnx",),
        ),
        "recognition": OcrFile(
            "PP-OCRv4/rec/ch_PP-OCRv4_rec_mobile.onnx",
            "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
            ("ch_PP-OCRv4_rec_infer.onnx",),
        ),
    },
}

KNOWN = {CLIP: tuple(CLIP_MODELS), FACES: FACE_MODELS, OCR: tuple(OCR_MODELS)}

FLORES = {
    "af": "afr_Latn", "ar": "arb_Arab", "az": "azj_Latn", "be": "bel_Cyrl", "bg": "bul_Cyrl", "ca": "cat_Latn",
    "cs": "ces_Latn", "da": "dan_Latn", "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn", "es": "spa_Latn",
    "et": "est_Latn", "fa": "pes_Arab", "fi": "fin_Latn", "fr": "fra_Latn", "he": "heb_Hebr", "hi": "hin_Deva",
    "hr": "hrv_Latn", "hu": "hun_Latn", "hy": "hye_Armn", "id": "ind_Latn", "it": "ita_Latn", "ja": "jpn_Jpan",
    "ko": "kor_Hang", "lt": "lit_Latn", "lv": "lvs_Latn", "mk": "mkd_Cyrl", "mn": "khk_Cyrl", "mr": "mar_Deva",
    "ms": "zsm_Latn", "nb": "nob_Latn", "nl": "nld_Latn", "nn": "nno_Latn", "pl": "pol_Latn", "pt": "por_Latn",
    "ro": "ron_Latn", "ru": "rus_Cyrl", "sk": "slk_Latn", "sl": "slv_Latn", "sr": "srp_Cyrl", "sv": "swe_Latn",
    "ta": "tam_Taml", "te": "tel_Telu", "th": "tha_Thai", "tr": "tur_Latn", "uk": "ukr_Cyrl", "ur": "urd_Arab",
    "vi": "vie_Latn", "yue": "yue_Hant", "zh": "zho_Hans", "zh-cn": "zho_Hans", "zh-hans": "zho_Hans",
    "zh-hk": "yue_Hant", "zh-hant": "zho_Hant", "zh-tw": "zho_Hant",
}  # fmt: skip
"""What nllb models call a language (FLORES-200), by its usual code in lower case."""


def flores_code(language: str) -> str | None:
    """`zho_Hans` for "zh-CN", "zh" or "zho_Hans" itself; None for a language we don't know."""
    if language in FLORES.values():
        return language
    usual = language.lower().replace("_", "-")
    return FLORES.get(usual) or FLORES.get(usual.split("-")[0])


def configured(settings: Settings) -> dict[str, tuple[Part, ...]]:
    """The parts that each task that is on needs."""
    parts: dict[str, tuple[Part, ...]] = {
        "ocr": (Part(OCR, settings.ocr_model_name, "detection"), Part(OCR, settings.ocr_model_name, "recognition")),
        "clip": (
            Part(CLIP, settings.clip_visual_model_name, "visual"),
            Part(CLIP, settings.clip_textual_model_name, "textual"),
        ),
        "faces": (
            Part(FACES, settings.face_detection_model_name, "detection"),
            Part(FACES, settings.face_recognition_model_name, "recognition"),
        ),
    }
    for task in settings.int8_tasks:
        parts[task] = tuple(
            replace(part, int8=int8_of(part.path(settings.cache_folder)).is_file()) for part in parts[task]
        )
    return {task: parts[task] for task in parts if task in settings.tasks}


def int8_of(model: Path) -> Path:
    """Where the int8 variant of a model file is, if it has one."""
    return model.parent / INT8 / model.name


def made_of(model: Path) -> list[int | str]:
    """What an int8 variant knows its original by."""
    from ..runtime.prepared import seen  # numpy comes with it, which most starts of a command don't need

    return seen(model)


def _check_int8(settings: Settings) -> None:
    """Raises SettingsError where a task is to use int8 variants and has none, or one of a file that is no more."""
    for task, parts in configured(settings).items():
        if task not in settings.int8_tasks:
            continue
        variants = [part for part in parts if part.int8]
        stale = [part for part in variants if not _int8_is_fresh(part.path(settings.cache_folder))]
        if stale or not variants:
            part = stale[0] if stale else parts[task == "faces"]
            raise SettingsError(
                f"INT8_TASKS={','.join(sorted(settings.int8_tasks))}: expected an int8 variant of {part}"
                f"{' as it is now, not as it was' if stale else ''}; "
                f"`mt-photos-ml models optimize {part.name} PHOTOS` makes one"
            )


def _int8_is_fresh(model: Path) -> bool:
    try:
        record = json.loads((int8_of(model).parent / INT8_RECORD).read_text())
        return bool(record["original"] == made_of(model))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def used(settings: Settings) -> list[Part]:
    """The parts that all tasks that are on need."""
    return [part for parts in configured(settings).values() for part in parts]


def preloaded(settings: Settings) -> list[Part]:
    """The parts in use that are to be loaded at the start."""
    lists = {(folder, kind): names for folder, kind, _, names in _preload_lists(settings)}
    return [part for part in used(settings) if part.name in lists.get((part.folder, part.kind), ())]


def check_preloaded(settings: Settings) -> None:
    """Raises SettingsError where a list names models and not the one in use, which alone can be loaded."""
    wanted = preloaded(settings)
    lists = {(folder, kind): (variable, names) for folder, kind, variable, names in _preload_lists(settings)}
    for part in used(settings):
        variable, names = lists.get((part.folder, part.kind), ("", []))
        if names and part not in wanted:
            raise SettingsError(f"{variable}={','.join(names)}: expected {part.name}, the model that is in use")


def _preload_lists(settings: Settings) -> list[tuple[str, str, str, list[str]]]:
    """Folder, kind, variable and names of every list of models to be loaded at the start."""
    asked = (
        (CLIP, "visual", "CLIP__VISUAL", settings.preload_clip_visual),
        (CLIP, "textual", "CLIP__TEXTUAL", settings.preload_clip_textual),
        (FACES, "detection", "FACIAL_RECOGNITION__DETECTION", settings.preload_face_detection),
        (FACES, "recognition", "FACIAL_RECOGNITION__RECOGNITION", settings.preload_face_recognition),
        (OCR, "detection", "OCR__DETECTION", settings.preload_ocr_detection),
        (OCR, "recognition", "OCR__RECOGNITION", settings.preload_ocr_recognition),
    )
    return [
        (folder, kind, f"MACHINE_LEARNING_PRELOAD__{name}", [clean_name(one.strip()) for one in value.split(",")])
        for folder, kind, name, value in asked
        if value
    ]


def clip_vector_length(settings: Settings) -> int | None:
    """Numbers in a CLIP vector of the model in use; None for a model of one's own that is not there yet."""
    name = settings.clip_visual_model_name
    if name in CLIP_MODELS:
        return CLIP_MODELS[name].length
    try:
        return int(json.loads((settings.cache_folder / CLIP / name / "config.json").read_text())["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check(settings: Settings) -> None:
    """Raises SettingsError where a model in use is neither known nor in the cache, or CLIP's two don't fit."""
    variables = {
        (CLIP, "visual"): "CLIP_VISUAL_MODEL_NAME",
        (CLIP, "textual"): "CLIP_TEXTUAL_MODEL_NAME",
        (FACES, "detection"): "FACE_DETECTION_MODEL_NAME",
        (FACES, "recognition"): "FACE_RECOGNITION_MODEL_NAME",
    }
    for parts in configured(settings).values():
        for part in parts:
            if part.name not in KNOWN[part.folder] and part.missing(settings.cache_folder):
                variable = variables.get((part.folder, part.kind), "OCR_MODEL_NAME")
                likely = difflib.get_close_matches(part.name, KNOWN[part.folder], 1)
                raise SettingsError(
                    f"{variable}={part.name}: expected a model that `mt-photos-ml models list` shows"
                    f"{f', such as {likely[0]}' if likely else ''}, or one of your own with "
                    f"{', '.join(part.files)} in {settings.cache_folder / part.folder / part.name}"
                )
    for folder, kind, variable, names in _preload_lists(settings):
        for name in names:
            if name not in KNOWN[folder] and Part(folder, name, kind).missing(settings.cache_folder):
                raise SettingsError(f"{variable}={name}: expected models that `mt-photos-ml models list` shows")
    if "clip" in settings.tasks and clip_vector_length(settings) is None:
        config = settings.cache_folder / CLIP / settings.clip_visual_model_name / "config.json"
        raise SettingsError(f"CLIP_VISUAL_MODEL_NAME={config.parent.name}: expected the length embed_dim in {config}")
    _check_int8(settings)
    visual, textual = settings.clip_visual_model_name, settings.clip_textual_model_name
    if "clip" in settings.tasks and _space(visual) != _space(textual):
        raise SettingsError(
            f"CLIP_TEXTUAL_MODEL_NAME={textual}: expected {visual}, the name in CLIP_VISUAL_MODEL_NAME; "
            "vectors of different models can't be compared, no search would find anything"
        )
    if settings.clip_language is not None and flores_code(settings.clip_language) is None:
        raise SettingsError(
            f"CLIP_LANGUAGE={settings.clip_language}: expected a language such as zh-CN, en or zho_Hans"
        )


def _space(name: str) -> str:
    return CLIP_MODELS[name].space if name in CLIP_MODELS else name
