"""HTML to PDF through WeasyPrint: pictures and fonts from memory, contents with page numbers, no error passed over.

Contents by ``target-counter`` cost more than three times the layout. So the body is laid out once with empty pages
where the contents
will stand, the contents are laid out alone with the page numbers then known, and their pages take the empty pages'
places.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interpret.errors import ReportError
from interpret.fonts import report_fonts

SCHEME = "evidence:"
VARIANT = "pdf/a-3a"
# The private class whose PNG pass-through we extend was read in these major versions; others get WeasyPrint's own,
# slower way.
PASS_THROUGH_VERSIONS = range(66, 71)


class Store:
    """The pictures and fonts of one report, by content: the only things that its PDF may load."""

    def __init__(self) -> None:
        self.contents: dict[str, tuple[bytes, str]] = {}

    def add(self, content: bytes, media_type: str) -> str:
        """Keep the content and return the URL under which the printer finds it."""
        url = SCHEME + hashlib.sha256(content).hexdigest()
        self.contents[url] = content, media_type
        return url

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
            of its own for each.
        contents: makes the contents' HTML from page numbers, the number of its first page and the number of all pages.
        anchors: ids that the contents list.
        store: pictures and fonts.
        attachments: name to content of the files to embed.
        created: date of the attachments, ISO 8601; "" for a fixed date.

    Raises:
        ReportError: WeasyPrint reported an error, or asked for something that is not the report's own.
    """
    import weasyprint
    from weasyprint.text.fonts import FontConfiguration

    fetcher, fonts = _fetcher(store), FontConfiguration()
    cache: dict[str, Any] = {}
    with _ErrorsRaised():

        def lay_out(markup: str) -> weasyprint.Document:
            _pass_through(store, cache)
            return weasyprint.HTML(string=markup, base_url=None, url_fetcher=fetcher).render(
                font_config=fonts, cache=cache, pdf_variant=VARIANT
            )

        draft = lay_out(contents(dict.fromkeys(anchors, 999), 0, 999))
        document = lay_out(body(len(draft.pages)))
        numbers: dict[str, int] = {}
        for page, place in enumerate(document.pages, 1):
            for anchor in place.anchors:
                numbers.setdefault(anchor, page)  # an element that breaks is an anchor of each of its pages
        first = numbers["contents-page-0"] - 1
        listed = lay_out(contents({anchor: numbers[anchor] for anchor in anchors}, first + 1, len(document.pages)))
        if len(listed.pages) != len(draft.pages):
            raise ReportError(f"the contents need {len(listed.pages)} pages, but {len(draft.pages)} were kept for them")
        pages = [*document.pages[:first], *listed.pages, *document.pages[first + len(listed.pages) :]]
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
        with warnings.catch_warnings():
            # WeasyPrint 70 leaves the file of its colour profile to the garbage collector.
            warnings.filterwarnings("ignore", category=ResourceWarning, message=".*sRGB")
            pdf: bytes = document.copy(pages).write_pdf(attachments=files, pdf_variant=VARIANT)
    return pdf


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
    """Put palette PNGs into WeasyPrint's image cache as objects that hand their compressed rows to the PDF unchanged.

    WeasyPrint expands a palette to RGB and compresses it again, twice: 15 times the cost and twice the size, for the
    same pixels. PDF
    knows indexed colours and the PNG predictor, so nothing needs to be decoded.
    """
    import weasyprint

    if int(weasyprint.__version__.partition(".")[0]) not in PASS_THROUGH_VERSIONS:
        return
    from weasyprint.images import RasterImage

    class IndexedImage(RasterImage):  # type: ignore[misc]  # WeasyPrint has no types
        def __init__(self, url: str, chunks: Mapping[bytes, bytes]) -> None:
            self.id = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
            self.width, self.height = (int.from_bytes(chunks[b"IHDR"][start : start + 4], "big") for start in (0, 4))
            self.ratio = self.width / self.height
            self._dpi = None
            self._chunks = chunks

        def get_x_object(self, interpolate: bool, dpi_ratio: float) -> Any:
            import pydyf

            palette = self._chunks[b"PLTE"]
            extra = {
                "Type": "/XObject",
                "Subtype": "/Image",
                "Width": self.width,
                "Height": self.height,
                "ColorSpace": pydyf.Array(["/Indexed", "/DeviceRGB", len(palette) // 3 - 1, f"<{palette.hex()}>"]),
                "BitsPerComponent": 8,
                "Interpolate": "false",
                "Filter": "/FlateDecode",
                "DecodeParms": pydyf.Dictionary({"Predictor": 15, "Columns": self.width}),
            }
            if b"tRNS" in self._chunks:
                extra["Mask"] = pydyf.Array([255, 255])  # the gutter: palette index 255 is not painted
            return pydyf.Stream([self._chunks[b"IDAT"]], pydyf.Dictionary(extra))

    for url, (content, media_type) in store.contents.items():
        if media_type == "image/png" and url not in cache:
            chunks = _png_chunks(content)
            if b"PLTE" in chunks:
                cache[url] = IndexedImage(url, chunks)


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
