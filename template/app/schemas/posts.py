from app.schemas.fields import Id, RequestModel, ResponseModel, Text, Title


class PostCreate(RequestModel):
    author_id: Id
    title: Title
    body: Text


class PostResponse(ResponseModel):
    id: int
    author_id: int
    title: str
    body: str
