"""The pages: what a person looks at while a job runs. Functions from nouns to HTML."""

from turnwise.dashboard.app import dashboard_app, is_page
from turnwise.dashboard.job.prices import Prices
from turnwise.dashboard.observed import Observed
from turnwise.dashboard.rooms import DashboardRooms, OtherDoor

__all__ = ["DashboardRooms", "Observed", "OtherDoor", "Prices", "dashboard_app", "is_page"]
