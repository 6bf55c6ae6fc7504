"""What a request may hold, and how it is read from JSON or from a form."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_K, MAX_TEXT, MAX_REFERENCES, MAX_INPUTS = 1000, 2000, 16, 64
_SHOWN_ERRORS = 3


class RequestError(Exception):
    """A request that is refused with a status and a message for its sender."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def decode_image(value: Any) -> bytes:
    """Decode base64, or a data: URL of it, to an image file's bytes; ValueError if it is neither."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("it must be an image file as base64")
    if value[:5].lower() == "data:":
        head, _, value = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("a data: URL must be one of base64: data:image/png;base64,...")
    elif "://" in value[:20]:
        raise ValueError("nothing is fetched from a URL; send the image file itself as base64")
    try:
        content = base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("it is not base64") from error
    if not content:
        raise ValueError("the image is empty")
    return content


ImageBytes = Annotated[
    bytes, BeforeValidator(decode_image), WithJsonSchema({"type": "string", "contentEncoding": "base64"})
]
Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1, max_length=500)]
ShortText = Annotated[str, Field(max_length=MAX_TEXT)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reference(_Strict):
    """A reference image: the id of one in the gallery, or an image file as base64."""

    id: str | None = None
    image: ImageBytes | None = None
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _check(self) -> "Reference":
        if (self.id is None) == (self.image is None):
            raise ValueError("a reference needs either id or image")
        return self


class WeightedText(_Strict):
    """A text and its weight; by default 1, or 0.5 in `without`."""

    text: ShortText
    weight: Weight | None = None


Texts = ShortText | WeightedText | list[ShortText | WeightedText]


class SearchRequest(_Strict):
    """A composed query; it needs a reference, a text, or both."""

    references: list[str | Reference] = Field([], max_length=MAX_REFERENCES, description="A text is a gallery id.")
    text: Texts = Field("", description="What to change.")
    without: Texts = Field("", description="What results should not show.")
    k: int = Field(10, ge=1, le=MAX_K, description="Number of results.")
    exclude: list[str] = Field([], description="Gallery ids that are left out.")
    filter: Pattern | Annotated[list[Pattern], Field(max_length=100)] | None = Field(
        None, description="Patterns of the ids that are searched: 'night/*.jpg'."
    )
    restrict_to: list[str] | None = Field(None, description="The only gallery ids that are searched.")
    keep_reference: bool = Field(False, description="Whether a reference that is in the gallery may be found.")


class SearchForm(BaseModel):
    """The same as a form, for uploads; weights need JSON."""

    image: list[Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]] = []
    reference_id: list[str] = []
    text: list[str] = []
    without: list[str] = []
    k: int = 10
    exclude: list[str] = []
    filter: list[str] = []
    restrict_to: list[str] = []
    keep_reference: bool = False


class Found(BaseModel):
    """One result; the score is a cosine, in [-1, 1]."""

    rank: int
    image_id: str
    score: float


class SearchResponse(BaseModel):
    """Results, best first, and the ids that were left out."""

    results: list[Found]
    excluded: list[str]


class ImageUrl(BaseModel):
    """A data: URL."""

    url: ImageBytes


class TextPart(BaseModel):
    """A text in OpenAI's form of content."""

    type: Literal["text"]
    text: ShortText


class ImagePart(BaseModel):
    """An image in OpenAI's form of content."""

    type: Literal["image_url"]
    image_url: ImageUrl | ImageBytes


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Input = ShortText | Part | list[Part]


class Message(BaseModel):
    """A chat message; only its content counts."""

    role: str = "user"
    content: ShortText | list[Part]


class EmbeddingRequest(BaseModel):
    """OpenAI's embeddings; an input is a text, a content part, or a list of parts that make one composed query."""

    input: ShortText | Annotated[list[Input], Field(min_length=1, max_length=MAX_INPUTS)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_INPUTS)] | None = Field(
        None, description="Instead of input: all content makes one composed query."
    )
    model: str = Field("", description="Not used: the service has one model.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def parts(self) -> list[list[str | bytes]]:
        """Texts and image files of each input.

        Raises:
            RequestError: If there is nothing to embed.
        """
        if (self.input is None) == (self.messages is None):
            raise RequestError("An embedding needs either input or messages.")
        if self.messages is not None:
            found = [[part for message in self.messages for part in _flat(message.content)]]
        else:
            found = [_flat(one) for one in (self.input if isinstance(self.input, list) else [self.input])]
        for number, one in enumerate(found):
            if not any(part if isinstance(part, bytes) else part.strip() for part in one):
                raise RequestError(f"Input {number} is empty. Give a text, an image, or both.")
        if sum(isinstance(part, bytes) for one in found for part in one) > MAX_INPUTS:
            raise RequestError(f"A request may hold at most {MAX_INPUTS} images.")
        return found


class Embedding(BaseModel):
    """One vector of unit norm: numbers, or float32 as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    """OpenAI's list of embeddings; tokens are not counted."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: dict[str, int] = {"prompt_tokens": 0, "total_tokens": 0}


async def read_json(request: Request, model: type[BaseModel]) -> Any:
    """Read a request's JSON.

    Raises:
        RequestError: If it does not fit the model.
    """
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestError(_explain(error)) from error


async def read_search(request: Request) -> SearchRequest:
    """Read a search from JSON, or from a form with uploads.

    Raises:
        RequestError: If it is neither, or does not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await read_json(request, SearchRequest)
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise RequestError(f"A search is application/json or multipart/form-data, not {kind[:100]!r}.", 415)
    try:
        form = await request.form(max_files=MAX_REFERENCES, max_fields=1000)
    except HTTPException as error:
        raise RequestError(f"The form cannot be read: {error.detail}") from error
    values: dict[str, Any] = {"references": [{"id": one} for one in form.getlist("reference_id")]}
    for upload in form.getlist("image"):
        if not isinstance(upload, UploadFile):
            raise RequestError("The field image must be a file; with curl: -F image=@cat.jpg.")
        values["references"].append({"image": await upload.read()})
    for name in set(form) - {"image", "reference_id"}:
        several = [one for one in form.getlist(name) if one != ""]
        if several:
            values[name] = several[-1] if name in ("k", "keep_reference") else several
    try:
        return SearchRequest.model_validate(values)
    except ValidationError as error:
        raise RequestError(_explain(error)) from error


def _flat(content: Any) -> list[str | bytes]:
    """Texts and image files of an input or a message's content."""
    if isinstance(content, list):
        return [one for part in content for one in _flat(part)]
    if isinstance(content, TextPart):
        return [content.text]
    if isinstance(content, ImagePart):
        return [content.image_url if isinstance(content.image_url, bytes) else content.image_url.url]
    return [content]


def _explain(error: ValidationError) -> str:
    """Say what does not fit, without repeating what was sent."""
    found = [
        f"{'.'.join(map(str, one['loc']))[:200] or 'the request'}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    more = f" (and {len(found) - _SHOWN_ERRORS} more)" if len(found) > _SHOWN_ERRORS else ""
    return "; ".join(found[:_SHOWN_ERRORS]) + more
