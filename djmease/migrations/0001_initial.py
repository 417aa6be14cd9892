from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Give the permissions of the status page their content type; there is no table."""

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Status",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
            options={
                "verbose_name": "WebSocket status",
                "verbose_name_plural": "WebSocket status",
                "permissions": [
                    ("view_status", "Can view the WebSocket status"),
                    ("disconnect_client", "Can disconnect WebSocket clients"),
                    ("publish_message", "Can publish test messages"),
                ],
                "managed": False,
                "default_permissions": (),
            },
        ),
    ]
