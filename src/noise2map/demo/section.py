"""A section of the demo's page."""

from abc import ABC, abstractmethod
from pathlib import Path

from noise2map.report.html import Page


class DemoSection(ABC):
    """Adds something to the demo's page and to its folder.

    Attributes:
        title: The heading on the page.
    """

    title: str

    @abstractmethod
    def show(self, page: Page, out: Path) -> list[str]:
        """Compute what is to be seen, add it to the page, and write the files that belong to it.

        Args:
            page: The demo's page.
            out: The demo's folder.

        Returns:
            Lines for the terminal: tables of scores, or none.

        Raises:
            OSError: If a file cannot be written.
        """
