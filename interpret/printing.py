"""HTML to PDF through WeasyPrint: pictures and fonts from memory, contents with page numbers, no error passed over.

Contents by ``target-counter`` cost more than three times the layout. So the body is laid out once with empty pages
where the contents will stand, the contents are laid out alone with the page numbers then known, and their pages take
the empty pages' places.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from interpret.decoding import whole_files_only
from interpret.errors import ReportError
from interpret.fonts import report_fonts

SCHEME = "evidence:"
VARIANT = "pdf/a-3a"
# The private class whose PNG pass-through we extend was read in these major versions; others get WeasyPrint's own,
# slower way.
PASS_THROUGH_VERSIONS = range(66, 71)
PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG"}  # media type to the name of the decoder
INDEXED = 3
PNG_KINDS = {0: ("/DeviceGray", 1), 2: ("/DeviceRGB", 3), INDEXED: ("/Indexed", 1)}  # colour type to space, channels
JPEG_SPACES = {"L": "/DeviceGray", "RGB": "/DeviceRGB"}
MOST_PIXELS = 16_000_000  # of one picture: the report's own are far smaller, a bomb is far larger


class Store:
    """The pictures and fonts of one report, by content: the only things that its PDF may load."""

    def __init__(self) -> None:
        self.contents: dict[str, tuple[bytes, str]] = {}

    def add(self, content: bytes, media_type: str, name: str = "") -> str:
        """Keep the content and return the URL under which the printer finds it.

        Raises:
            ReportError: a picture is too large or cannot be decoded; the message quotes its ``name``.
        """
        url = SCHEME + hashlib.sha256(content).hexdigest()
        if url not in self.contents:
            if media_type in PICTURES:
                _check_picture(content, media_type, name)
            self.contents[url] = content, media_type
        return url

    @property
    def pictures(self) -> int:
        """How many distinct pictures there are; drawings are none."""
        return sum(media_type in PICTURES for _, media_type in self.contents.values())

    def font_faces(self) -> str:
        """``@font-face`` rules of the report's fonts, which are kept too."""
        rules = []
        for font in report_fonts():
            url = self.add(font.path.read_bytes(), "font/ttf")
            face = f'font-family: "{font.family}"; font-weight: {font.weight}; src: url("{url}");'
            rules.append(f"@font-face {{ {face} }}\n")
        return "".join(rules)


def print_joined(
    body: Callable[[int], str],
    contents: Callable[[Mapping[str, int], int, int], str],
    anchors: Sequence[str],
    store: Store,
    attachments: Mapping[str, bytes],
    created: str,
) -> bytes:
    """The PDF of a body and of the contents that list its anchors.

    Args:
        body: makes the body's HTML for a number of contents pages; it holds an element ``contents-page-N`` on a page
            of its own for each. Every picture of the store is in it.
        contents: makes the contents' HTML from page numbers, the number of its first page and the number of all pages.
        anchors: ids that the contents list; without any there are no contents.
        store: pictures and fonts.
        attachments: name to content of the files to embed.
        created: date of the attachments, ISO 8601; "" for a fixed date.

    Raises:
        ReportError: WeasyPrint reported an error, asked for something that is not the report's own, or left out a
            picture.
    """
    with whole_files_only(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No fonts configured")  # the report brings its own
        import weasyprint
        from weasyprint.text.fonts import FontConfiguration

    fetcher, fonts = _fetcher(store), FontConfiguration()
    cache: dict[str, Any] = {}
    drawn: list[int] = []
    with _ErrorsRaised(), _collector_paused():

        def lay_out(markup: str) -> weasyprint.Document:
            _pass_through(store, cache)
            document = weasyprint.HTML(string=markup, base_url=None, url_fetcher=fetcher).render(
                font_config=fonts, cache=cache, pdf_variant=VARIANT
            )
            gc.collect()
            return document

        draft = lay_out(contents(dict.fromkeys(anchors, 999), 0, 999)).pages if anchors else []
        document = lay_out(body(len(draft)))
        pages = document.pages
        if draft:
            numbers: dict[str, int] = {}
            for page, place in enumerate(pages, 1):
                for anchor in place.anchors:
                    numbers.setdefault(anchor, page)  # an element that breaks is an anchor of each of its pages
            first = numbers["contents-page-0"] - 1
            placed = {anchor: numbers[anchor] for anchor in anchors}
            listed = lay_out(contents(placed, first + 1, len(pages))).pages
            if len(listed) != len(draft):
                raise ReportError(f"the contents need {len(listed)} pages, but {len(draft)} were kept for them")
            pages = [*pages[:first], *listed, *pages[first + len(listed) :]]
        when = _date(created)
        files = [
            weasyprint.Attachment(
                file_obj=io.BytesIO(content),
                name=name,
                created=when,
                modified=when,
                relationship="Data",
                url_fetcher=fetcher,
            )
            for name, content in attachments.items()
        ]

        def let_go(painted: weasyprint.Document, written: Any) -> None:
            """Free the layout, which has been painted: writing needs as much again."""
            drawn.append(_count_pictures(written.objects))
            for held in (draft, pages, document.pages, painted.pages):
                held.clear()
            gc.collect()

        with warnings.catch_warnings(), tempfile.TemporaryFile() as file:
            # WeasyPrint 70 leaves the file of its colour profile to the garbage collector.
            warnings.filterwarnings("ignore", category=ResourceWarning, message=".*sRGB")
            document.copy(pages).write_pdf(file, attachments=files, pdf_variant=VARIANT, finisher=let_go)
            file.seek(0)
            pdf = file.read()
    if drawn[0] < store.pictures:
        raise ReportError(f"the PDF would be incomplete: it holds {drawn[0]} of the report's {store.pictures} pictures")
    return pdf


def _check_picture(content: bytes, media_type: str, name: str) -> None:
    """Refuse a picture that is too large for a report, and one that does not decode to its last row."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=[PICTURES[media_type]])
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise ReportError(
                f"picture {name!r} has {width} x {height} pixels, and a report takes at most "
                f"{MOST_PIXELS // 1_000_000} million; audit again if this evidence is your own"
            )
        with whole_files_only():
            picture.draft(None, (1, 1))  # a JPEG is read to its end without being drawn at full size
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ReportError(f"the PDF would be incomplete: picture {name!r} cannot be decoded: {error}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ReportError(f"picture {name!r} is too large for a report: {error}") from error


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without cyclic garbage collection: a layout's objects live to its end, and looking through them costs a fifth."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _count_pictures(objects: Sequence[Any]) -> int:
    """How many of a PDF's objects are pictures; the mask of one is none."""
    extras = [extra for item in objects if isinstance(extra := getattr(item, "extra", None), dict)]
    drawn = [extra for extra in extras if extra.get("Subtype") == "/Image"]
    return len(drawn) - sum("SMask" in extra for extra in drawn)


def _fetcher(store: Store) -> Any:
    """A fetcher that serves the store and stops the rendering at anything else."""
    from weasyprint.urls import FatalURLFetchingError, URLFetcher, URLFetcherResponse

    class StoreFetcher(URLFetcher):  # type: ignore[misc]  # WeasyPrint has no types
        def fetch(self, url: str, headers: Any = None) -> Any:
            if url not in store.contents:
                raise FatalURLFetchingError(f"the report may only load its own pictures and fonts, not {url[:200]!r}")
            content, media_type = store.contents[url]
            return URLFetcherResponse(url, content, {"Content-Type": media_type})

    return StoreFetcher(allow_redirects=False)


class _ErrorsRaised:
    """Turns WeasyPrint's error log, and its refusal to fetch, into a ReportError: no picture vanishes silently."""

    def __init__(self) -> None:
        self._records: list[str] = []
        self._logger = logging.getLogger("weasyprint")
        self._handler = logging.Handler(logging.ERROR)
        self._handler.emit = lambda record: self._records.append(record.getMessage())  # type: ignore[method-assign]

    def __enter__(self) -> None:
        self._logger.addHandler(self._handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._logger.removeHandler(self._handler)
        if error is not None and type(error).__name__ == "FatalURLFetchingError":  # a BaseException of a lazy import
            raise ReportError(str(error)) from error
        if error is None and self._records:
            raise ReportError(f"the PDF would be incomplete; WeasyPrint says: {'; '.join(self._records[:3])}")


def _pass_through(store: Store, cache: dict[str, Any]) -> None:
    """Put pictures into WeasyPrint's image cache as objects that hand their compressed bytes to the PDF unchanged.

    WeasyPrint compresses every PNG again, and a palette as RGB, twice: 15 times the cost and twice the size, for the
    same pixels; of a JPEG it keeps copies. PDF knows indexed colours, the PNG predictor and JPEG, so nothing needs to
    be decoded.
    """
    import weasyprint

    if int(weasyprint.__version__.partition(".")[0]) not in PASS_THROUGH_VERSIONS:
        return
    from weasyprint.images import RasterImage

    class StoredImage(RasterImage):  # type: ignore[misc]  # WeasyPrint has no types
        def __init__(self, url: str, content: bytes, extra: Mapping[str, Any]) -> None:
            self.id = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
            self.width, self.height = extra["Width"], extra["Height"]
            self.ratio = self.width / self.height
            self._dpi = None
            self._content, self._extra = content, extra

        def get_x_object(self, interpolate: bool, dpi_ratio: float) -> Any:
            import pydyf

            common = {"Type": "/XObject", "Subtype": "/Image", "Interpolate": "false"}
            return pydyf.Stream([self._content], pydyf.Dictionary({**common, **self._extra}))

    for url, (content, media_type) in store.contents.items():
        if media_type in PICTURES and url not in cache:
            stored = _as_stored_png(content) if media_type == "image/png" else _as_stored_jpeg(content)
            if stored is not None:
                cache[url] = StoredImage(url, *stored)


def _as_stored_png(content: bytes) -> tuple[bytes, dict[str, Any]] | None:
    """The compressed rows of a PNG and the entries of a PDF's image; None where a PDF cannot hold it as it is."""
    import pydyf

    chunks = _png_chunks(content)
    head, palette = chunks[b"IHDR"], chunks.get(b"PLTE", b"")
    depth, kind, interlaced = head[8], head[9], head[12]
    if interlaced or kind not in PNG_KINDS or (b"tRNS" in chunks and (kind != INDEXED or depth != 8)):
        return None
    space, colours = PNG_KINDS[kind]
    columns = int.from_bytes(head[:4], "big")
    decoding = {"Predictor": 15, "Columns": columns, "Colors": colours, "BitsPerComponent": depth}
    extra = {
        "Width": columns,
        "Height": int.from_bytes(head[4:8], "big"),
        "ColorSpace": space,
        "BitsPerComponent": depth,
        "Filter": "/FlateDecode",
        "DecodeParms": pydyf.Dictionary(decoding),
    }
    if kind == INDEXED:
        extra["ColorSpace"] = pydyf.Array([space, "/DeviceRGB", len(palette) // 3 - 1, f"<{palette.hex()}>"])
    if b"tRNS" in chunks:
        extra["Mask"] = pydyf.Array([255, 255])  # the gutter: palette index 255 is not painted
    return chunks[b"IDAT"], extra


def _as_stored_jpeg(content: bytes) -> tuple[bytes, dict[str, Any]] | None:
    """A JPEG and the entries of a PDF's image; None where WeasyPrint would turn it round or change its colours."""
    picture = Image.open(io.BytesIO(content))
    if picture.mode not in JPEG_SPACES or picture.getexif():
        return None
    width, height = picture.size
    space = JPEG_SPACES[picture.mode]
    return content, {
        "Width": width,
        "Height": height,
        "ColorSpace": space,
        "BitsPerComponent": 8,
        "Filter": "/DCTDecode",
    }


def _png_chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG by type; those of one type are joined."""
    chunks: dict[bytes, bytes] = {}
    position = 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        chunks[kind] = chunks.get(kind, b"") + content[position + 8 : position + 8 + length]
        position += 12 + length
    return chunks


def _date(created: str) -> datetime.datetime:
    """The audit's date, or the start of 1980 as in the bundle's archives. Never the clock: renders must be equal."""
    try:
        return datetime.datetime.fromisoformat(created)
    except ValueError:
        return datetime.datetime(1980, 1, 1, tzinfo=datetime.UTC)
