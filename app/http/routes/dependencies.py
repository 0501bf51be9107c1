"""Dependencies of the routes: the shared state of the application."""

from typing import Annotated

from fastapi import Depends

from app.service.state import AppState, app_state

SharedState = Annotated[AppState, Depends(app_state)]
"""Type of a route's parameter that receives the state."""
